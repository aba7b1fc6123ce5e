"""What methods that edit by themselves, without training, have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from instructedit.editors.signals import edit_loss
from instructedit.errors import EditorError
from instructedit.models.language_model import LanguageModel
from instructedit.models.split import SplitForward, TrunkState
from instructedit.models.structure import Matrix
from instructedit.models.text import pad
from instructedit.records import EditRequest


class Descent(BaseModel):
    """Adam on each edit of a batch, until its loss is small enough."""

    steps: int = Field(25, ge=1, description="of Adam, at most")
    learning_rate: float = Field(5e-4, gt=0)
    enough: float = Field(1e-2, ge=0, description="an edit with a smaller loss is left as it is")


def last_mlp_matrix(language_model: LanguageModel, block: int) -> Matrix:
    """The matrix through which a block's MLP writes into the residual stream.

    Raises:
        EditorError: the model has no such block.
    """
    structure = language_model.structure
    if block >= len(structure.blocks):
        raise EditorError(f"block {block} is asked for, the model has {len(structure.blocks)}, counted from 0")
    return [matrix for matrix in structure.mlps[block] if matrix.outputs == structure.hidden][-1]


def requests_state(
    language_model: LanguageModel, requests: Sequence[EditRequest], split_layer: int
) -> tuple[SplitForward, TrunkState]:
    """The split model, and its trunk's state of prompts and targets, one request a row."""
    pair = language_model.text.encode_pair
    batch = pad([pair(r.prompt, r.target) for r in requests], language_model.text.pad_id).to(language_model.device)
    split = language_model.split(split_layer)
    return split, split.trunk(batch)


def at_tokens(x: Tensor, places: Tensor) -> Tensor:
    """(rows, width) of x (rows, tokens, width), flattened or not, at one token of every row."""
    rows = torch.arange(len(places), device=x.device)
    return x.reshape(len(places), -1, x.shape[-1])[rows, places.to(x.device)]


def descend_each(
    learned: Sequence[Tensor],
    attached: Callable[[], AbstractContextManager[None]],
    split: SplitForward,
    state: TrunkState,
    descent: Descent,
    confine: Callable[[], None] = lambda: None,
) -> None:
    """Lower every row's own loss by what is learned, in place; the rows do not meet.

    The sum of the losses gives each row its own gradient, Adam treats every entry by itself, and a row that is done no
    longer moves. So a batch gives what one edit at a time would.

    Args:
        learned: tensors with one leading entry a row, which require gradients.
        attached: puts them into the model.
        confine: brings them back to where they may be after a step.
    """
    optimizer = torch.optim.Adam(learned, lr=descent.learning_rate)
    for _ in range(descent.steps):
        with torch.enable_grad(), attached():
            losses = edit_loss(split.top(state), state.batch)
            optimizer.zero_grad()
            losses.sum().backward()
        done = losses.detach() < descent.enough
        if done.all():
            return
        before = [tensor.detach().clone() for tensor in learned]
        optimizer.step()
        with torch.no_grad():
            confine()
            for tensor, old in zip(learned, before, strict=True):
                tensor[done] = old[done]
