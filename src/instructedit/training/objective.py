"""The meta-training loss: what the edited model must say, and what it must go on saying.

    L = c_edit * L_edit + c_loc * L_loc                                     (MEND, equation 4; the paper's section 3)

L_edit is the mean over edits of the weighted cross-entropy of the wanted continuations under each edit's own
delta, plus the unlikelihood -log(1 - p) of unwanted ones; L_loc is KL(before || after) on the probes that must stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from instructedit.deltas.delta import DeltaBatch
from instructedit.editors.mend import Mend
from instructedit.models.language_model import LanguageModel
from instructedit.models.split import TrunkState
from instructedit.models.text import Encoded, pad
from instructedit.training.mixture import Example
from instructedit.training.recipe import Objective


class _Row(NamedTuple):
    query: Encoded
    edit: int
    weight: float


@dataclass(frozen=True)
class Losses:
    """Parts of the loss of one batch, and the means by task for the log."""

    total: Tensor
    edit: float
    locality: float
    by_task: dict[str, dict[str, float]]


def compute(
    editor: Mend,
    language_model: LanguageModel,
    deltas: DeltaBatch,
    examples: Sequence[Example],
    objective: Objective,
) -> Losses:
    """The loss of a batch of examples under their deltas; differentiable with respect to the deltas."""
    pair = language_model.text.pair
    rise = [_Row(pair(w.prompt, w.answer), edit, w.weight) for edit, e in enumerate(examples) for w in e.rise]
    fall = [_Row(pair(w.prompt, w.answer), edit, w.weight) for edit, e in enumerate(examples) for w in e.fall]
    stay = [_Row(pair(*query), edit, 1.0) for edit, e in enumerate(examples) for query in e.stay]

    batch = _Batch(editor.cut, language_model, deltas, len(examples))
    risen, rise_weight = batch.average(rise, _cross_entropy)
    fallen, _ = batch.average(fall, _unlikelihood)
    per_token = objective.locality_average == "token"
    moved, stay_weight = batch.average(stay, _divergence, per_token)

    edit_losses = risen / rise_weight.clamp_min(1e-6) + fallen
    locality_losses = moved / stay_weight.clamp_min(1e-6)
    emphasis = torch.tensor([item.locality for item in examples], device=moved.device)
    # Per token, long answers weigh more across the whole batch; per prompt, every edit counts once.
    if per_token:
        locality = (emphasis * moved).sum() / stay_weight.sum().clamp_min(1e-6)
    else:
        locality = (emphasis * locality_losses).mean()
    total = objective.edit_weight * edit_losses.mean() + objective.locality_weight * locality
    by_task = _by_task(examples, edit_losses.detach(), locality_losses.detach())
    return Losses(total, edit_losses.mean().item(), locality.item(), by_task)


#: A loss per label (labels,), from edited logits (labels, vocabulary), labels, and what gives the unedited logits.
_LabelLoss = Callable[[Tensor, Tensor, Callable[[], Tensor]], Tensor]


def _cross_entropy(logits: Tensor, labels: Tensor, unedited: Callable[[], Tensor]) -> Tensor:
    return functional.cross_entropy(logits, labels, reduction="none")


def _unlikelihood(logits: Tensor, labels: Tensor, unedited: Callable[[], Tensor]) -> Tensor:
    probability = logits.softmax(-1).gather(1, labels[:, None])[:, 0]
    return -torch.log1p(-probability.clamp(max=1 - 1e-4))


def _divergence(logits: Tensor, labels: Tensor, unedited: Callable[[], Tensor]) -> Tensor:
    before = unedited().log_softmax(-1)
    return functional.kl_div(logits.log_softmax(-1), before, log_target=True, reduction="none").sum(-1)


@dataclass(frozen=True)
class _Batch:
    cut: int
    language_model: LanguageModel
    deltas: DeltaBatch
    edits: int

    def average(self, rows: Sequence[_Row], loss: _LabelLoss, per_token: bool = False) -> tuple[Tensor, Tensor]:
        """Weighted sums (edits,) of the rows' losses, and the sums of their weights.

        A row's loss is the mean over its labels; per token it is their sum, and its weight their number.
        """
        device = self.language_model.device
        total = torch.zeros(self.edits, device=device)
        weight = torch.zeros(self.edits, device=device)
        split = self.language_model.split(self.cut)
        for group in by_length(rows):
            batch = pad([row.query for row in group], self.language_model.text.pad_id).to(device)
            edits = torch.tensor([row.edit for row in group], device=device)
            weights = torch.tensor([row.weight for row in group], device=device)
            state = split.trunk(batch)
            with self.deltas.attached(self.language_model, edits):
                logits = split.top(state).float()

            @torch.no_grad()
            def unedited(state: TrunkState = state) -> Tensor:
                return split.top(state).float()

            losses = loss(logits, batch.labels, unedited)
            if not per_token:
                weights = weights / torch.bincount(batch.rows, minlength=len(group))
            label_weights = weights[batch.rows]
            total = total.index_add(0, edits[batch.rows], losses * label_weights)
            weight = weight.index_add(0, edits[batch.rows], label_weights)
        return total, weight


def by_length(rows: Sequence[_Row], waste: float = 0.25) -> Iterator[list[_Row]]:
    """Rows in groups of like length: at most about a share ``waste`` of a group is padding."""
    if not rows:
        return
    ordered = sorted(rows, key=lambda row: len(row.query.ids))
    group: list[_Row] = []
    tokens = 0
    for row in ordered:
        length = len(row.query.ids)
        if len(group) >= 8 and tokens + length < (1 - waste) * length * (len(group) + 1):
            yield group
            group, tokens = [], 0
        group.append(row)
        tokens += length
    yield group


def _by_task(examples: Sequence[Example], edit: Tensor, locality: Tensor) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for name in sorted({item.task for item in examples}):
        where = torch.tensor([item.task == name for item in examples], device=edit.device)
        found[name] = {"edit": round(edit[where].mean().item(), 4), "locality": round(locality[where].mean().item(), 4)}
    return found
