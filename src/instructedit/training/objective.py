"""The meta-training loss: what the edited model must say, and what it must go on saying.

    L = c_edit * L_edit + c_loc * L_loc                                     (MEND, equation 4; the paper's section 3)

L_edit is the mean over edits of the weighted cross-entropy of the wanted continuations under each edit's own
delta, plus the unlikelihood -log(1 - p) of unwanted ones; L_loc is KL(before || after) on the probes that must stay.

How much every answer counts is known before anything is computed, so the queries go through the model group by
group, and each group's backward pass follows its forward at once: only one group's activations are held. The
gradients meet at the deltas and pass the hypernetwork together, once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from instructedit.deltas.delta import DeltaBatch
from instructedit.editors.gradient import GradientEditor
from instructedit.models.language_model import LanguageModel
from instructedit.models.split import SplitForward, TrunkState
from instructedit.models.text import Encoded, pad
from instructedit.training.mixture import Example
from instructedit.training.recipe import Objective


@dataclass(frozen=True)
class Losses:
    """What a batch of edits lost.

    Attributes:
        total: L.
        edit, locality: each edit's own L_edit and L_loc.
        tasks: each edit's task.
    """

    total: float
    edit: tuple[float, ...]
    locality: tuple[float, ...]
    tasks: tuple[str, ...]

    @property
    def mean_edit(self) -> float:
        return sum(self.edit) / len(self.edit)

    @property
    def mean_locality(self) -> float:
        return sum(self.locality) / len(self.locality)

    def by_task(self) -> dict[str, dict[str, float]]:
        """Means of the task's edits."""
        found: dict[str, dict[str, float]] = {}
        for name in sorted(set(self.tasks)):
            where = [index for index, task in enumerate(self.tasks) if task == name]
            parts = {"edit": self.edit, "locality": self.locality}
            found[name] = {key: round(sum(v[i] for i in where) / len(where), 4) for key, v in parts.items()}
        return found


def descend(
    editor: GradientEditor,
    language_model: LanguageModel,
    deltas: DeltaBatch,
    examples: Sequence[Example],
    objective: Objective,
    *,
    scale: float = 1.0,
    mean_over_processes: Callable[[float], float] = lambda value: value,
) -> Losses:
    """The losses of a batch under its deltas; adds ``scale`` times the gradient of L to the editor's parameters.

    Args:
        deltas: as the editor made them, with their graph.
        mean_over_processes: averages a number over the processes that share the batch.
    """
    leaves = deltas.leaves()
    losses = _losses(editor, language_model, leaves, examples, objective, scale, mean_over_processes)
    deltas.backward(leaves)
    return losses


@torch.no_grad()
def measure(
    editor: GradientEditor,
    language_model: LanguageModel,
    deltas: DeltaBatch,
    examples: Sequence[Example],
    objective: Objective,
) -> Losses:
    """The losses of a batch under its deltas."""
    return _losses(editor, language_model, deltas, examples, objective, 1.0, lambda value: value)


#: A loss per label (labels,), from edited logits (labels, vocabulary), labels, and what gives the unedited logits.
_LabelLoss = Callable[[Tensor, Tensor, Callable[[], Tensor]], Tensor]


def _cross_entropy(logits: Tensor, labels: Tensor, unedited: Callable[[], Tensor]) -> Tensor:
    return functional.cross_entropy(logits, labels, reduction="none")


def unlikelihood(logits: Tensor, labels: Tensor, unedited: Callable[[], Tensor]) -> Tensor:
    """-log(1 - p), with 1 - p as the sum of all other tokens' probabilities: exact, and steep, up to p = 1."""
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return logits.logsumexp(-1) - others.logsumexp(-1)


def _divergence(logits: Tensor, labels: Tensor, unedited: Callable[[], Tensor]) -> Tensor:
    before = unedited().log_softmax(-1)
    return functional.kl_div(logits.log_softmax(-1), before, log_target=True, reduction="none").sum(-1)


@dataclass(frozen=True)
class _Row:
    """One query.

    Attributes:
        shares: what each of its labels counts in the edit's own loss.
        factor: times that, what it counts in L.
        worst: how much of all that goes to the label that is lost most.
    """

    query: Encoded
    edit: int
    shares: tuple[float, ...]
    factor: float
    worst: float


def _rows(
    editor: GradientEditor,
    language_model: LanguageModel,
    examples: Sequence[Example],
    objective: Objective,
    mean_over_processes: Callable[[float], float],
) -> Mapping[_LabelLoss, list[_Row]]:
    """All queries of a batch with their weights, by the loss that they are for."""

    def pair(prompt: str, answer: str) -> Encoded:
        return language_model.text.encode_pair(prompt, editor.answer(answer))

    rows: dict[_LabelLoss, list[_Row]] = {_cross_entropy: [], unlikelihood: [], _divergence: []}

    def add(loss: _LabelLoss, edit: int, query: Encoded, weight: float, factor: float, first: float = 1.0) -> None:
        labels = len(query.ids) - query.target_start
        weights = [first, *[1.0] * (labels - 1)]
        shares = tuple(weight * value / sum(weights) for value in weights)
        # An answer is gone as soon as any of its tokens is.
        worst = 0.0 if loss is unlikelihood else examples[edit].worst_token
        rows[loss].append(_Row(query, edit, shares, factor, worst))

    stays = [[pair(*query) for query in example.stay] for example in examples]
    kept_labels = float(sum(len(query.ids) - query.target_start for queries in stays for query in queries))
    per_token = objective.locality_average == "token"
    if per_token:
        kept_labels = mean_over_processes(kept_labels)
    c_edit = objective.edit_weight / len(examples)
    first = objective.first_token_weight
    for edit, (example, queries) in enumerate(zip(examples, stays, strict=True)):
        # What weighs nothing is not asked; a forgetting task, or reach_weight 0, may leave nothing to ask.
        wanted = [want for want in example.rise if want.weight > 0]
        whole = sum(want.weight for want in wanted)
        for want in wanted:
            add(_cross_entropy, edit, pair(want.prompt, want.answer), want.weight / whole, c_edit, first)
        for want in example.fall:
            add(unlikelihood, edit, language_model.text.encode_pair(want.prompt, want.answer), want.weight, c_edit)
        own_labels = sum(len(query.ids) - query.target_start for query in queries)
        c_loc = objective.locality_weight * example.locality
        for query in queries:
            # Per token, long answers weigh more across the whole batch; per prompt, every edit counts once.
            if per_token:
                share = (len(query.ids) - query.target_start) / own_labels
                add(_divergence, edit, query, share, c_loc * own_labels / kept_labels)
            else:
                add(_divergence, edit, query, 1 / len(queries), c_loc / len(examples), objective.first_kept_weight)
    return rows


def _losses(
    editor: GradientEditor,
    language_model: LanguageModel,
    deltas: DeltaBatch,
    examples: Sequence[Example],
    objective: Objective,
    scale: float,
    mean_over_processes: Callable[[float], float],
) -> Losses:
    """The losses; where gradients are recorded, those of ``scale`` times L are left in the deltas."""
    device = language_model.device
    split = language_model.split(editor.split_layer)
    total = torch.zeros((), device=device)
    own: dict[_LabelLoss, Tensor] = {
        loss: torch.zeros(len(examples), device=device) for loss in (_cross_entropy, unlikelihood, _divergence)
    }
    for loss, rows in _rows(editor, language_model, examples, objective, mean_over_processes).items():
        for group in by_length(rows):
            losses, rows_of = _label_losses(split, language_model, deltas, group, loss)
            shares = _shares(group, losses.detach(), rows_of)
            factors = torch.tensor([row.factor for row in group], device=device)[rows_of]
            part = (losses * shares * factors).sum()
            if part.requires_grad:
                (scale * part).backward()
            total += part.detach()
            edits = torch.tensor([row.edit for row in group], device=device)[rows_of]
            own[loss].index_add_(0, edits, losses.detach() * shares)
    edit = own[_cross_entropy] + own[unlikelihood]
    return Losses(
        total.item(),
        tuple(edit.tolist()),
        tuple(own[_divergence].tolist()),
        tuple(example.task for example in examples),
    )


def _label_losses(
    split: SplitForward,
    language_model: LanguageModel,
    deltas: DeltaBatch,
    group: Sequence[_Row],
    loss: _LabelLoss,
) -> tuple[Tensor, Tensor]:
    """(labels,) the loss at every label of a group of queries, and the row of the group that it belongs to."""
    device = language_model.device
    batch = pad([row.query for row in group], language_model.text.pad_id).to(device)
    edits = torch.tensor([row.edit for row in group], device=device)
    state = split.trunk(batch)
    with deltas.attached(language_model, edits):
        logits = split.top(state).float()

    @torch.no_grad()
    def unedited(state: TrunkState = state) -> Tensor:
        return split.top(state).float()

    return loss(logits, batch.labels, unedited), batch.rows


def _shares(group: Sequence[_Row], losses: Tensor, rows: Tensor) -> Tensor:
    """(labels,) what each label counts: its own share, of which a part moves to its answer's worst label."""
    shares = torch.tensor([share for row in group for share in row.shares], device=losses.device)
    moved = torch.tensor([row.worst for row in group], device=losses.device)[rows]
    none = torch.zeros(len(group), device=losses.device)
    worst = (losses == none.scatter_reduce(0, rows, losses, "amax", include_self=False)[rows]).float()
    whole, alike = none.index_add(0, rows, shares), none.index_add(0, rows, worst)
    return (1 - moved) * shares + moved * worst * (whole / alike)[rows]


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
