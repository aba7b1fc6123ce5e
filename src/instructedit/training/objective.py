"""The meta-training loss.

    L = c_edit * L_edit + c_loc * L_loc                                     (MEND, equation 4; the paper's section 3)

L_edit is the mean over edits of the weighted cross-entropy of the likelihood targets under each edit's own delta, plus
the unlikelihood -log(1 - p) of the unlikelihood targets; L_loc is KL(unedited || edited) on the locality targets.

The weight of every label is known before anything is computed, so the queries pass the model group by group, and the
backward pass of a group follows its forward pass: only one group's activations are in memory. The gradients add up at
the deltas and pass the hypernetwork together, once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from instructedit.deltas.delta import DeltaBatch
from instructedit.editors.gradient import GradientEditor
from instructedit.models.language_model import LanguageModel
from instructedit.models.split import SplitForward, TrunkState
from instructedit.models.text import pad
from instructedit.training.mixture import Example
from instructedit.training.queries import LossKind, Query, by_length, make_queries
from instructedit.training.recipe import Objective


@dataclass(frozen=True)
class Losses:
    """Losses of a batch of edits.

    Attributes:
        total: L.
        edit: L_edit of each edit.
        locality: L_loc of each edit.
        tasks: Task of each edit.
    """

    total: float
    edit: tuple[float, ...]
    locality: tuple[float, ...]
    tasks: tuple[str, ...]

    @property
    def mean_edit(self) -> float:
        """Mean of L_edit over the edits."""
        return sum(self.edit) / len(self.edit)

    @property
    def mean_locality(self) -> float:
        """Mean of L_loc over the edits."""
        return sum(self.locality) / len(self.locality)

    def by_task(self) -> dict[str, dict[str, float]]:
        """Return mean L_edit and L_loc of each task's edits, rounded for the log."""
        means: dict[str, dict[str, float]] = {}
        for name in sorted(set(self.tasks)):
            indices = [index for index, task in enumerate(self.tasks) if task == name]
            parts = {"edit": self.edit, "locality": self.locality}
            means[name] = {key: round(sum(v[i] for i in indices) / len(indices), 4) for key, v in parts.items()}
        return means

    @classmethod
    def concatenate(cls, parts: Sequence[Losses]) -> Self:
        """Return the losses of several batches of equal size as those of one."""
        return cls(
            sum(part.total for part in parts) / len(parts),
            tuple(value for part in parts for value in part.edit),
            tuple(value for part in parts for value in part.locality),
            tuple(task for part in parts for task in part.tasks),
        )


def loss_and_backward(
    editor: GradientEditor,
    language_model: LanguageModel,
    deltas: DeltaBatch,
    examples: Sequence[Example],
    objective: Objective,
    *,
    scale: float = 1.0,
    mean_over_processes: Callable[[float], float] = lambda value: value,
) -> Losses:
    """Compute the losses of a batch and add ``scale`` times the gradient of L to the editor's parameters.

    Args:
        editor: That made the deltas.
        language_model: The base model.
        deltas: One per example, with their graph.
        examples: The batch.
        objective: Weights of the loss.
        scale: Factor on the gradient; 1 / number of accumulated batches.
        mean_over_processes: Averages a number over the processes that share the batch.
    """
    # In bfloat16 the deltas are rounded once here, and not by every product with the base model's states; autocast
    # would only check and copy tensors then.
    bfloat16 = language_model.model.dtype is torch.bfloat16
    leaves = deltas.leaves(torch.bfloat16 if bfloat16 else None)
    with torch.autocast(language_model.device.type, enabled=False) if bfloat16 else nullcontext():
        losses = _losses(editor, language_model, leaves, examples, objective, scale, mean_over_processes)
    deltas.backward(leaves)
    return losses


@torch.no_grad()
def compute_loss(
    editor: GradientEditor,
    language_model: LanguageModel,
    deltas: DeltaBatch,
    examples: Sequence[Example],
    objective: Objective,
) -> Losses:
    """Compute the losses of a batch without gradients; arguments as of :func:`loss_and_backward`."""
    return _losses(editor, language_model, deltas, examples, objective, 1.0, lambda value: value)


def _cross_entropy(logits: Tensor, labels: Tensor, unedited: Callable[[], Tensor]) -> Tensor:
    return functional.cross_entropy(logits, labels, reduction="none")


def unlikelihood(logits: Tensor, labels: Tensor, unedited: Callable[[], Tensor]) -> Tensor:
    """Return -log(1 - p) (labels,), with 1 - p as the sum of all other probabilities: exact, and steep, up to p = 1."""
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return logits.logsumexp(-1) - others.logsumexp(-1)


def _divergence(logits: Tensor, labels: Tensor, unedited: Callable[[], Tensor]) -> Tensor:
    before = unedited().log_softmax(-1)
    return functional.kl_div(logits.log_softmax(-1), before, log_target=True, reduction="none").sum(-1)


#: A loss per label (labels,), from edited logits (labels, vocabulary), labels, and a function for the unedited logits.
_LabelLoss = Callable[[Tensor, Tensor, Callable[[], Tensor]], Tensor]
_LABEL_LOSSES: dict[LossKind, _LabelLoss] = {
    LossKind.LIKELIHOOD: _cross_entropy,
    LossKind.UNLIKELIHOOD: unlikelihood,
    LossKind.LOCALITY: _divergence,
}


def _losses(
    editor: GradientEditor,
    language_model: LanguageModel,
    deltas: DeltaBatch,
    examples: Sequence[Example],
    objective: Objective,
    scale: float,
    mean_over_processes: Callable[[float], float],
) -> Losses:
    """Compute the losses; where gradients are recorded, leave those of ``scale`` times L in the deltas."""
    device = language_model.device
    split = language_model.split(editor.split_layer)
    total = torch.zeros((), device=device)
    per_edit = {kind: torch.zeros(len(examples), device=device) for kind in LossKind}
    for kind, queries in make_queries(editor, language_model, examples, objective, mean_over_processes).items():
        for group in by_length(queries):
            losses, query_of_label = _label_losses(split, language_model, deltas, group, _LABEL_LOSSES[kind])
            shares = _label_shares(group, losses.detach(), query_of_label)
            factors = torch.tensor([query.factor for query in group], device=device)[query_of_label]
            part = (losses * shares * factors).sum()
            if part.requires_grad:
                (scale * part).backward()
            total += part.detach()
            edits = torch.tensor([query.edit for query in group], device=device)[query_of_label]
            per_edit[kind].index_add_(0, edits, losses.detach() * shares)
    edit_losses = per_edit[LossKind.LIKELIHOOD] + per_edit[LossKind.UNLIKELIHOOD]
    return Losses(
        total.item(),
        tuple(edit_losses.tolist()),
        tuple(per_edit[LossKind.LOCALITY].tolist()),
        tuple(example.task for example in examples),
    )


def _label_losses(
    split: SplitForward,
    language_model: LanguageModel,
    deltas: DeltaBatch,
    group: Sequence[Query],
    loss: _LabelLoss,
) -> tuple[Tensor, Tensor]:
    """Return the loss at every label of a group (labels,) and the index of the label's query in the group (labels,)."""
    device = language_model.device
    batch = pad([query.text for query in group], language_model.text.pad_id).to(device)
    edits = torch.tensor([query.edit for query in group], device=device)
    state = split.trunk(batch)
    with deltas.attached(language_model, edits):
        logits = split.top(state).float()

    @torch.no_grad()
    def unedited(state: TrunkState = state) -> Tensor:
        return split.top(state).float()

    return loss(logits, batch.labels, unedited), batch.rows


def _label_shares(group: Sequence[Query], losses: Tensor, query_of_label: Tensor) -> Tensor:
    """Return each label's weight (labels,): its own share, of which a part moves to its answer's worst label."""
    shares = torch.tensor([share for query in group for share in query.shares], device=losses.device)
    moved = torch.tensor([query.worst_token for query in group], device=losses.device)[query_of_label]
    zeros = torch.zeros(len(group), device=losses.device)
    largest = zeros.scatter_reduce(0, query_of_label, losses, "amax", include_self=False)
    is_worst = (losses == largest[query_of_label]).float()
    sums, ties = zeros.index_add(0, query_of_label, shares), zeros.index_add(0, query_of_label, is_worst)
    return (1 - moved) * shares + moved * is_worst * (sums / ties)[query_of_label]
