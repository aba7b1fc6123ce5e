"""Split forward pass: the frozen trunk runs once, the edited top as often as needed.

Only the blocks from ``split_layer`` on (the top) are edited, so the blocks below (the trunk) give the same hidden
states before and after an edit. Both halves call the model's own forward: for the trunk, the top's blocks are replaced
by the identity; for the top, the trunk's blocks are, and the first block of the top gets the trunk's output as its
input. Masks, rotary embeddings, sliding windows, logit soft caps and so on remain the model's own, so trunk and top
together equal the full forward pass.
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

from instructedit.models.hooks import removed_on_exit
from instructedit.models.structure import Structure
from instructedit.models.text import TokenBatch
from instructedit.models.trunk_cache import TrunkCache


@dataclass(frozen=True)
class TrunkState:
    """Output of the trunk.

    Attributes:
        hidden: (rows, length, hidden size) input of block ``split_layer``.
        batch: the tokens that it was computed for.
    """

    hidden: Tensor
    batch: TokenBatch

    def split(self, rows: int) -> tuple[TrunkState, TrunkState]:
        """Return the states of the first rows and those of the others."""
        before, after = self.batch.split(rows)
        return TrunkState(self.hidden[:rows], before), TrunkState(self.hidden[rows:], after)


class SplitForward:
    """Trunk and top of a model, split before block ``split_layer``.

    Args:
        model: a causal language model.
        structure: the structure of that model.
        split_layer: index of the first block of the top; with 0 the top is the full model.
        returns_tuple: whether the model's blocks return a tuple; see :func:`blocks_return_tuples`.
        lock: acquired for every forward pass, because a pass temporarily replaces blocks and registers hooks.

    Attributes:
        cache: cache of trunk outputs, or None; see :meth:`LanguageModel.cache_trunk`.
    """

    def __init__(
        self, model: PreTrainedModel, structure: Structure, split_layer: int, *, returns_tuple: bool, lock: RLock
    ) -> None:
        self.model = model
        self.split_layer = split_layer
        self.returns_tuple = returns_tuple
        self.lock = lock
        self.cache: TrunkCache | None = None
        self.blocks: list[nn.Module] = [model.get_submodule(name) for name in structure.blocks]
        self.head: nn.Module = model.get_submodule(structure.head)
        accepted = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in accepted

    @torch.no_grad()
    def trunk(self, batch: TokenBatch) -> TrunkState:
        """Run the trunk without gradients, or return its cached output."""
        with self.lock:
            hidden = self._trunk(batch) if self.cache is None else self.cache.states(batch, self._trunk)
        return TrunkState(hidden, batch)

    def _trunk(self, batch: TokenBatch) -> Tensor:
        captured: list[Tensor] = []

        def capture(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            captured.append(_hidden_states(args, kwargs))

        no_logits = torch.zeros_like(batch.predicts)
        with (
            self._bypassed(self.blocks[self.split_layer :]),
            removed_on_exit(self.blocks[self.split_layer].register_forward_pre_hook(capture, with_kwargs=True)),
        ):
            self._run(batch, no_logits)
        return captured[0]

    def top(self, state: TrunkState, *, logits: bool = True) -> Tensor:
        """Run the top on the trunk's output.

        Args:
            state: the trunk's output.
            logits: False for callers that read states by hooks: the output layer, a fifth of a small model, is spared.

        Returns:
            (predicted, vocabulary) logits where ``state.batch.predicts`` is True, in row-major order; (0, vocabulary)
            without logits.
        """
        predicts = state.batch.predicts if logits else torch.zeros_like(state.batch.predicts)
        with self.lock, self._bypassed(self.blocks[: self.split_layer]), self._beginning_with(state):
            return self._run(state.batch, predicts)

    @torch.no_grad()
    def one_block(self, state: TrunkState) -> TrunkState:
        """Run block ``split_layer`` alone; what it returns is the trunk's state before the next block."""
        captured: list[Tensor] = []

        def capture(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            captured.append(output[0] if isinstance(output, tuple) else output)

        block = self.blocks[self.split_layer]
        with (
            self.lock,
            self._bypassed([other for other in self.blocks if other is not block]),
            self._beginning_with(state),
            removed_on_exit(block.register_forward_hook(capture)),
        ):
            self._run(state.batch, torch.zeros_like(state.batch.predicts))
        return TrunkState(captured[0], state.batch)

    @contextmanager
    def _beginning_with(self, state: TrunkState) -> Iterator[None]:
        """Give block ``split_layer`` the trunk's output as its input inside the ``with`` block."""

        def inject(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            if "hidden_states" in kwargs:
                return args, {**kwargs, "hidden_states": state.hidden}
            return (state.hidden, *args[1:]), kwargs

        with removed_on_exit(self.blocks[self.split_layer].register_forward_pre_hook(inject, with_kwargs=True)):
            yield

    def full(self, batch: TokenBatch) -> Tensor:
        """Run the model without splitting it; the logits are those of :meth:`top`."""
        with self.lock:
            return self._run(batch, batch.predicts)

    def _run(self, batch: TokenBatch, positions: Tensor) -> Tensor:
        """Run the model's forward; only the ``positions``, a (rows, length) mask, enter the output layer."""

        def gather(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (args[0][positions.to(args[0].device)][None], *args[1:])

        inputs: dict[str, Any] = {"input_ids": batch.ids, "attention_mask": batch.mask.long(), "use_cache": False}
        if self._takes_positions:
            inputs["position_ids"] = batch.positions
        with removed_on_exit(self.head.register_forward_pre_hook(gather)):
            logits: Tensor = self.model(**inputs).logits
        return logits[0]

    @contextmanager
    def _bypassed(self, blocks: Sequence[nn.Module]) -> Iterator[None]:
        """Replace these blocks by the identity inside the ``with`` block."""

        def identity(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            return (hidden_states,) if self.returns_tuple else hidden_states

        with ExitStack() as stack:
            for block in blocks:
                stack.callback(_restore_forward(block))
                block.forward = identity
            yield


@torch.no_grad()
def blocks_return_tuples(model: PreTrainedModel, structure: Structure, device: torch.device) -> bool:
    """Return whether the model's blocks return a tuple, found by running the model on a single token.

    Call it before an edit is attached: an edit with one delta for each row rejects a batch of one row.

    Args:
        model: a causal language model.
        structure: the structure of that model.
        device: the device of the model's inputs.
    """
    returned_tuple: list[bool] = []
    first_block = model.get_submodule(structure.blocks[0])
    token = torch.ones(1, 1, dtype=torch.long, device=device)
    hook = first_block.register_forward_hook(lambda *call: returned_tuple.append(isinstance(call[2], tuple)))
    with removed_on_exit(hook):
        model(input_ids=token, attention_mask=token, use_cache=False)
    return returned_tuple[0]


def _hidden_states(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    assert isinstance(hidden, Tensor)
    return hidden


def _restore_forward(block: nn.Module) -> Callable[[], None]:
    """Return a function that undoes an assignment to ``block.forward``, also if it was assigned before."""
    if "forward" in vars(block):
        previous = vars(block)["forward"]
        return lambda: setattr(block, "forward", previous)
    return lambda: delattr(block, "forward")
