"""The meta-training loss: what the edited model must say, and what it must go on saying.

    L = c_edit * L_edit + c_loc * L_loc                                     (MEND, equation 4; the paper's section 3)

L_edit is the mean over edits of the weighted cross-entropy of the wanted continuations under each edit's own
delta, plus the unlikelihood -log(1 - p) of unwanted ones; L_loc is KL(before || after) on the probes that must stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from instructedit.deltas.delta import DeltaBatch
from instructedit.editors.mend import Mend
from instructedit.models.language_model import LanguageModel
from instructedit.models.text import Encoded, pad
from instructedit.training.mixture import Example
from instructedit.training.recipe import Objective


class _Row(NamedTuple):
    query: Encoded
    edit: int
    kind: str  # rise, fall or stay
    weight: float


@dataclass(frozen=True)
class Losses:
    """Parts of the loss of one batch, and sums by task for the log."""

    total: Tensor
    edit: float
    locality: float
    by_task: dict[str, dict[str, float]]


def compute(
    editor: Mend, language_model: LanguageModel, deltas: DeltaBatch, examples: Sequence[Example], objective: Objective
) -> Losses:
    """The loss of a batch of examples under their deltas; differentiable with respect to the deltas."""
    count = len(examples)
    device = language_model.device
    rise = torch.zeros(count, device=device)
    fall = torch.zeros(count, device=device)
    divergence = torch.zeros(count, device=device)
    rise_weight = torch.zeros(count, device=device)
    stay_weight = torch.zeros(count, device=device)
    split = language_model.split(editor.cut)
    for rows in by_length(_rows(language_model, examples)):
        batch = pad([row.query for row in rows], language_model.text.pad_id).to(device)
        edits = torch.tensor([row.edit for row in rows], device=device)
        state = split.trunk(batch)
        with deltas.attached(language_model, edits):
            logits = split.top(state).float()
        kinds = [row.kind for row in rows]
        weights = torch.tensor([row.weight for row in rows], device=device)
        label_kind = torch.tensor([("rise", "fall", "stay").index(kind) for kind in kinds], device=device)[batch.rows]
        lengths = torch.bincount(batch.rows, minlength=len(rows))
        # Every label's share in its row's mean, times the row's weight.
        share = (weights / lengths)[batch.rows]
        edit_of_label = edits[batch.rows]

        wanted = label_kind == 0
        if wanted.any():
            losses = functional.cross_entropy(logits[wanted], batch.labels[wanted], reduction="none")
            rise = rise.index_add(0, edit_of_label[wanted], losses * share[wanted])
            is_rise = torch.tensor([kind == "rise" for kind in kinds], device=device)
            rise_weight = rise_weight.index_add(0, edits[is_rise], weights[is_rise])
        unwanted = label_kind == 1
        if unwanted.any():
            log_p = logits[unwanted].log_softmax(-1).gather(1, batch.labels[unwanted][:, None])[:, 0]
            unlikelihood = -torch.log1p(-log_p.exp().clamp(max=1 - 1e-4))
            fall = fall.index_add(0, edit_of_label[unwanted], unlikelihood * share[unwanted])
        staying = label_kind == 2
        if staying.any():
            with torch.no_grad():
                before = split.top(state).float()[staying].log_softmax(-1)
            kl = functional.kl_div(logits[staying].log_softmax(-1), before, log_target=True, reduction="none").sum(-1)
            # Per prompt every row counts once; per token a row counts with its length.
            counted = share[staying] if objective.locality_average == "prompt" else weights[batch.rows[staying]]
            divergence = divergence.index_add(0, edit_of_label[staying], kl * counted)
            stay_weight = stay_weight.index_add(0, edit_of_label[staying], counted)
    edit_losses = rise / rise_weight.clamp_min(1e-6) + fall
    if objective.locality_average == "prompt":
        locality_losses = divergence / stay_weight.clamp_min(1e-6)
        locality = locality_losses.mean()
    else:
        locality_losses = divergence / stay_weight.clamp_min(1e-6)
        locality = divergence.sum() / stay_weight.sum().clamp_min(1e-6)
    total = objective.edit_weight * edit_losses.mean() + objective.locality_weight * locality
    return Losses(
        total,
        edit_losses.mean().item(),
        locality.item(),
        _by_task(examples, edit_losses.detach(), locality_losses.detach()),
    )


def _rows(language_model: LanguageModel, examples: Sequence[Example]) -> list[_Row]:
    pair = language_model.text.pair
    rows = []
    for edit, item in enumerate(examples):
        rows += [_Row(pair(want.prompt, want.answer), edit, "rise", want.weight) for want in item.rise]
        rows += [_Row(pair(want.prompt, want.answer), edit, "fall", want.weight) for want in item.fall]
        rows += [_Row(pair(prompt, answer), edit, "stay", 1.0) for prompt, answer in item.stay]
    return rows


def by_length(rows: Sequence[_Row], waste: float = 0.25) -> Iterator[list[_Row]]:
    """Rows in groups of like length: at most about a share ``waste`` of a group is padding."""
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
