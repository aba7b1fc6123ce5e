"""The inputs of a model's linear layers in a forward pass."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from instructedit.models.hooks import removed_on_exit
from instructedit.models.language_model import LanguageModel
from instructedit.models.text import TokenBatch


@torch.no_grad()
def read_inputs(
    language_model: LanguageModel, batch: TokenBatch, modules: Iterable[str], split_layer: int = 0
) -> dict[str, Tensor]:
    """Return the inputs (rows, length, inputs) of modules by name.

    Args:
        language_model: the model.
        batch: the tokens.
        modules: names of the modules.
        split_layer: the block that the modules are not below; the blocks below it may come from the trunk's cache.
    """
    inputs: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        inputs[name] = args[0].reshape(*batch.mask.shape, -1)  # some families flatten rows and positions

    split = language_model.split(split_layer)
    state = split.trunk(batch) if split_layer else None
    with language_model.lock, ExitStack() as stack:
        for name in modules:
            module = language_model.model.get_submodule(name)
            stack.enter_context(removed_on_exit(module.register_forward_pre_hook(partial(keep, name))))
        split.full(batch) if state is None else split.top(state)
    return inputs
