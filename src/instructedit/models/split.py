"""The split forward: the frozen trunk once, the edited top as often as needed.

Both halves are the model's own forward. Running the trunk, the blocks above the cut are by-passed; running the
top, the blocks below it are, and the trunk's hidden state is handed to the first block above. Masks, rotary
tables, sliding windows, soft caps and whatever else a family does stay its own business, so a split equals the
whole forward by construction.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from instructedit.models.hooks import held
from instructedit.models.structure import Structure
from instructedit.models.text import TokenBatch
from instructedit.models.trunk_cache import TrunkCache


@dataclass(frozen=True)
class TrunkState:
    """What the trunk leaves for the top: ``hidden`` (rows, length, width) at the first block above the cut."""

    hidden: Tensor
    batch: TokenBatch


class SplitForward:
    """Trunk and top of a model, cut below block ``split_layer``.

    Args:
        model: a causal language model.
        structure: of that model.
        split_layer: index of the first block of the top; 0 makes the whole model the top.
        tuples: whether the model's blocks return a tuple; see :func:`blocks_return_tuples`.
        lock: held during every run, as blocks are by-passed and hooked meanwhile.

    Attributes:
        cache: trunk states already known; see :meth:`LanguageModel.remembering_trunks`.
    """

    def __init__(
        self, model: PreTrainedModel, structure: Structure, split_layer: int, *, tuples: bool, lock: RLock
    ) -> None:
        self.model = model
        self.split_layer = split_layer
        self.tuples = tuples
        self.lock = lock
        self.cache: TrunkCache | None = None
        self.blocks: list[nn.Module] = [model.get_submodule(name) for name in structure.blocks]
        self.head: nn.Module = model.get_submodule(structure.head)
        accepted = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in accepted

    @torch.no_grad()
    def trunk(self, batch: TokenBatch) -> TrunkState:
        """Run the blocks below the cut, or remember what they gave; never records gradients."""
        with self.lock:
            hidden = self._trunk(batch) if self.cache is None else self.cache.states(batch, self._trunk)
        return TrunkState(hidden, batch)

    def _trunk(self, batch: TokenBatch) -> Tensor:
        found: list[Tensor] = []

        def catch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found.append(_hidden(args, kwargs))

        nothing = torch.zeros_like(batch.predicts)
        with (
            self._bypassed(self.blocks[self.split_layer :]),
            held(self.blocks[self.split_layer].register_forward_pre_hook(catch, with_kwargs=True)),
        ):
            self._run(batch, nothing)
        return found[0]

    def top(self, state: TrunkState) -> Tensor:
        """Logits (predicted, vocabulary) where ``state.batch.predicts`` is True, in row-major order."""

        def inject(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            if "hidden_states" in kwargs:
                return args, {**kwargs, "hidden_states": state.hidden}
            return (state.hidden, *args[1:]), kwargs

        with (
            self.lock,
            self._bypassed(self.blocks[: self.split_layer]),
            held(self.blocks[self.split_layer].register_forward_pre_hook(inject, with_kwargs=True)),
        ):
            return self._run(state.batch, state.batch.predicts)

    def whole(self, batch: TokenBatch) -> Tensor:
        """Logits as from :meth:`top`, by the unsplit model."""
        with self.lock:
            return self._run(batch, batch.predicts)

    def _run(self, batch: TokenBatch, wanted: Tensor) -> Tensor:
        """The model's forward, with only the ``wanted`` positions entering the output layer."""

        def gather(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (args[0][wanted.to(args[0].device)][None], *args[1:])

        inputs: dict[str, Any] = {"input_ids": batch.ids, "attention_mask": batch.mask.long(), "use_cache": False}
        if self._takes_positions:
            inputs["position_ids"] = batch.positions
        with held(self.head.register_forward_pre_hook(gather)):
            logits: Tensor = self.model(**inputs).logits
        return logits[0]

    @contextmanager
    def _bypassed(self, blocks: Sequence[nn.Module]) -> Iterator[None]:
        """Let these blocks return their input."""

        def passing(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            return (hidden_states,) if self.tuples else hidden_states

        with ExitStack() as stack:
            for block in blocks:
                stack.callback(_restore_forward(block))
                block.forward = passing
            yield


@torch.no_grad()
def blocks_return_tuples(model: PreTrainedModel, structure: Structure, device: torch.device) -> bool:
    """Whether a block returns a tuple or a tensor, seen on one token.

    To be asked before an edit is attached: an edit of several rows takes no batch of one.

    Args:
        device: where the model takes its inputs.
    """
    kinds: list[bool] = []
    first = model.get_submodule(structure.blocks[0])
    one = torch.ones(1, 1, dtype=torch.long, device=device)
    with held(first.register_forward_hook(lambda *call: kinds.append(isinstance(call[2], tuple)))):
        model(input_ids=one, attention_mask=one, use_cache=False)
    return kinds[0]


def _hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    assert isinstance(hidden, Tensor)
    return hidden


def _restore_forward(block: nn.Module) -> Callable[[], None]:
    """How to undo an assignment to ``block.forward``; a forward that others had assigned comes back."""
    if "forward" in vars(block):
        previous = vars(block)["forward"]
        return lambda: setattr(block, "forward", previous)
    return lambda: delattr(block, "forward")
