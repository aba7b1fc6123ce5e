"""The inputs of a model's linear layers in a forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from instructedit.models.hooks import removed_on_exit
from instructedit.models.language_model import LanguageModel
from instructedit.models.split import TrunkState
from instructedit.models.text import TokenBatch


@torch.no_grad()
def read_inputs(language_model: LanguageModel, batch: TokenBatch, modules: Iterable[str]) -> dict[str, Tensor]:
    """Return the inputs (rows, length, inputs) of modules by name, in a forward pass of the batch."""
    with _kept(language_model, modules, batch) as inputs:
        language_model.split(0).full(batch)
    return inputs


@torch.no_grad()
def read_top_inputs(
    language_model: LanguageModel, state: TrunkState, split_layer: int, modules: Iterable[str]
) -> dict[str, Tensor]:
    """Return what :func:`read_inputs` does, for modules of the top, whose trunk has been run already."""
    with _kept(language_model, modules, state.batch) as inputs:
        language_model.split(split_layer).top(state, logits=False)
    return inputs


@torch.no_grad()
def read_block_inputs(
    language_model: LanguageModel, state: TrunkState, block: int, modules: Iterable[str]
) -> tuple[dict[str, Tensor], TrunkState]:
    """Return what :func:`read_inputs` does, for modules of one block, and the state before the next block.

    Args:
        language_model: the model.
        state: the trunk's state before the block.
        block: index of the block.
        modules: names of modules in it.
    """
    with _kept(language_model, modules, state.batch) as inputs:
        after = language_model.split(block).one_block(state)
    return inputs, after


@contextmanager
def _kept(language_model: LanguageModel, modules: Iterable[str], batch: TokenBatch) -> Iterator[dict[str, Tensor]]:
    """Keep the inputs of modules in the dictionary that is yielded."""
    inputs: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        inputs[name] = args[0].reshape(*batch.mask.shape, -1)  # some families flatten rows and positions

    with language_model.lock, ExitStack() as stack:
        for name in modules:
            module = language_model.model.get_submodule(name)
            stack.enter_context(removed_on_exit(module.register_forward_pre_hook(partial(keep, name))))
        yield inputs
