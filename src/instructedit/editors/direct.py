"""What direct methods have in common, which make an edit without any training beforehand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from pydantic import Field
from torch import Tensor

from instructedit.editors.base import EditorConfig
from instructedit.editors.signals import edit_loss
from instructedit.errors import EditorError
from instructedit.models.language_model import LanguageModel
from instructedit.models.split import SplitForward, TrunkState
from instructedit.models.structure import Matrix
from instructedit.models.text import pad
from instructedit.records import EditRequest


class AdamConfig(EditorConfig):
    """Adam on the loss of each edit of a batch, until that loss is below a threshold."""

    steps: int = Field(25, ge=1, description="steps of Adam, at most")
    learning_rate: float = Field(5e-4, gt=0, description="of Adam")
    loss_threshold: float = Field(1e-2, ge=0, description="an edit whose loss is below it is not optimised further")


def last_mlp_matrix(language_model: LanguageModel, block: int) -> Matrix:
    """Return the matrix through which a block's MLP writes into the residual stream.

    Raises:
        EditorError: the model has no such block.
    """
    structure = language_model.structure
    if block >= len(structure.blocks):
        raise EditorError(
            f"the editor's config sets block {block}, but the model has the blocks 0 to {len(structure.blocks) - 1}"
        )
    return [matrix for matrix in structure.mlps[block] if matrix.outputs == structure.hidden][-1]


def trunk_of_requests(
    language_model: LanguageModel, requests: Sequence[EditRequest], split_layer: int
) -> tuple[SplitForward, TrunkState]:
    """Return the split model, and its trunk's state of prompts and targets, one request a row."""
    pair = language_model.text.encode_pair
    batch = pad([pair(r.prompt, r.target) for r in requests], language_model.text.pad_id).to(language_model.device)
    split = language_model.split(split_layer)
    return split, split.trunk(batch)


def at_tokens(x: Tensor, token_positions: Tensor) -> Tensor:
    """Return x at one token of every row, (rows, width).

    Args:
        x: (rows, tokens, width), or with rows and tokens flattened.
        token_positions: (rows,) index of the token.
    """
    rows = torch.arange(len(token_positions), device=x.device)
    return x.reshape(len(token_positions), -1, x.shape[-1])[rows, token_positions.to(x.device)]


def minimise_each_loss(
    parameters: Sequence[Tensor],
    attached: Callable[[], AbstractContextManager[None]],
    split: SplitForward,
    state: TrunkState,
    config: AdamConfig,
    project: Callable[[], None] = lambda: None,
) -> None:
    """Minimise the edit loss of every row over its own parameters by Adam, in place.

    The sum of the losses gives each row its own gradient, Adam treats every entry by itself, and a row whose loss is
    below the threshold is no longer changed. So a batch gives what one edit at a time would.

    Args:
        parameters: tensors that require gradients, with one leading entry a row.
        attached: a context in which the model computes with the parameters.
        split: the split model.
        state: its trunk's state of the requests.
        config: of the optimiser.
        project: projects the parameters onto the allowed set after a step, in place.
    """
    optimizer = torch.optim.Adam(parameters, lr=config.learning_rate)
    for _ in range(config.steps):
        with torch.enable_grad(), attached():
            losses = edit_loss(split.top(state), state.batch)
            optimizer.zero_grad()
            losses.sum().backward()
        done = losses.detach() < config.loss_threshold
        if done.all():
            return
        before = [parameter.detach().clone() for parameter in parameters]
        optimizer.step()
        with torch.no_grad():
            project()
            for parameter, old in zip(parameters, before, strict=True):
                parameter[done] = old[done]
