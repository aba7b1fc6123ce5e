"""The meta-training loss.

    L = c_edit * L_edit + c_loc * L_loc                                     (MEND, equation 4; the paper's section 3)

L_edit is the mean over edits of the weighted cross-entropy of the likelihood targets under each edit's own delta, plus
the unlikelihood -log(1 - p) of the unlikelihood targets; L_loc is KL(unedited || edited) on the locality targets.

The weight of every label is known before anything is computed, so the queries pass the model group by group, and the
backward pass of a group follows its forward pass: only one group's activations are in memory. The gradients add up at
the deltas and pass the hypernetwork together, once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

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
    leaves = deltas.leaves()
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


#: A loss per label (labels,), from edited logits (labels, vocabulary), labels, and a function for the unedited logits.
_LabelLoss = Callable[[Tensor, Tensor, Callable[[], Tensor]], Tensor]


def _cross_entropy(logits: Tensor, labels: Tensor, unedited: Callable[[], Tensor]) -> Tensor:
    return functional.cross_entropy(logits, labels, reduction="none")


def unlikelihood(logits: Tensor, labels: Tensor, unedited: Callable[[], Tensor]) -> Tensor:
    """Return -log(1 - p) (labels,), with 1 - p as the sum of all other probabilities: exact, and steep, up to p = 1."""
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return logits.logsumexp(-1) - others.logsumexp(-1)


def _divergence(logits: Tensor, labels: Tensor, unedited: Callable[[], Tensor]) -> Tensor:
    before = unedited().log_softmax(-1)
    return functional.kl_div(logits.log_softmax(-1), before, log_target=True, reduction="none").sum(-1)


@dataclass(frozen=True)
class _Query:
    """A prompt and answer with its weights.

    Attributes:
        text: Tokens of prompt and answer.
        edit: Index of the edit under whose delta it is computed.
        shares: Weight of each of its labels in the edit's own loss.
        factor: Factor on these for their weight in L.
        worst_token: Share of all that weight that goes to the label with the largest loss.
    """

    text: Encoded
    edit: int
    shares: tuple[float, ...]
    factor: float
    worst_token: float


_Queries = Mapping[_LabelLoss, list[_Query]]


class _QueryBuilder:
    """Collects the queries of a batch by the loss that they are for."""

    def __init__(self, editor: GradientEditor, language_model: LanguageModel, examples: Sequence[Example]) -> None:
        self._editor, self._text, self._examples = editor, language_model.text, examples
        self.queries: dict[_LabelLoss, list[_Query]] = {_cross_entropy: [], unlikelihood: [], _divergence: []}

    def pair(self, prompt: str, answer: str) -> Encoded:
        """Tokenise a prompt with an answer that is trained to end where the editor's answers end."""
        return self._text.encode_pair(prompt, self._editor.answer(answer))

    def add(
        self, loss: _LabelLoss, edit: int, text: Encoded, weight: float, factor: float, first_token: float = 1.0
    ) -> None:
        """Add a query.

        Args:
            loss: Of each of its labels.
            edit: Index of its edit.
            text: Its tokens.
            weight: Sum of its labels' weights in the edit's own loss.
            factor: Factor on that in L.
            first_token: Weight of its first label relative to each later one.
        """
        weights = [first_token, *[1.0] * (_labels(text) - 1)]
        shares = tuple(weight * value / sum(weights) for value in weights)
        # An answer becomes impossible as soon as any one of its tokens does, so no token of it is the worst.
        worst_token = 0.0 if loss is unlikelihood else self._examples[edit].worst_token
        self.queries[loss].append(_Query(text, edit, shares, factor, worst_token))


def _labels(text: Encoded) -> int:
    return len(text.ids) - text.target_start


def _queries(
    editor: GradientEditor,
    language_model: LanguageModel,
    examples: Sequence[Example],
    objective: Objective,
    mean_over_processes: Callable[[float], float],
) -> _Queries:
    """Return all queries of a batch with their weights, by the loss that they are for."""
    builder = _QueryBuilder(editor, language_model, examples)
    locality = [[builder.pair(*target) for target in example.locality_targets] for example in examples]
    per_token = objective.locality_average == "token"
    batch_labels = float(sum(_labels(text) for texts in locality for text in texts))
    if per_token:
        batch_labels = mean_over_processes(batch_labels)
    c_edit = objective.edit_weight / len(examples)
    for edit, (example, texts) in enumerate(zip(examples, locality, strict=True)):
        # Targets of weight 0 are not computed; a forgetting task, or propagation_weight 0, may leave none.
        targets = [target for target in example.likelihood_targets if target.weight > 0]
        total_weight = sum(target.weight for target in targets)
        for target in targets:
            text, weight = builder.pair(target.prompt, target.answer), target.weight / total_weight
            builder.add(_cross_entropy, edit, text, weight, c_edit, objective.first_token_weight)
        for target in example.unlikelihood_targets:
            text = language_model.text.encode_pair(target.prompt, target.answer)
            builder.add(unlikelihood, edit, text, target.weight, c_edit)
        edit_labels = sum(_labels(text) for text in texts)
        c_loc = objective.locality_weight * example.locality
        for text in texts:
            # Per token, long answers weigh more across the whole batch; per prompt, every edit weighs the same.
            if per_token:
                share = _labels(text) / edit_labels
                builder.add(_divergence, edit, text, share, c_loc * edit_labels / batch_labels)
            else:
                first_token = objective.locality_first_token_weight
                builder.add(_divergence, edit, text, 1 / len(texts), c_loc / len(examples), first_token)
    return builder.queries


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
    per_edit: dict[_LabelLoss, Tensor] = {
        loss: torch.zeros(len(examples), device=device) for loss in (_cross_entropy, unlikelihood, _divergence)
    }
    for loss, queries in _queries(editor, language_model, examples, objective, mean_over_processes).items():
        for group in by_length(queries):
            losses, query_of_label = _label_losses(split, language_model, deltas, group, loss)
            shares = _label_shares(group, losses.detach(), query_of_label)
            factors = torch.tensor([query.factor for query in group], device=device)[query_of_label]
            part = (losses * shares * factors).sum()
            if part.requires_grad:
                (scale * part).backward()
            total += part.detach()
            edits = torch.tensor([query.edit for query in group], device=device)[query_of_label]
            per_edit[loss].index_add_(0, edits, losses.detach() * shares)
    edit_losses = per_edit[_cross_entropy] + per_edit[unlikelihood]
    return Losses(
        total.item(),
        tuple(edit_losses.tolist()),
        tuple(per_edit[_divergence].tolist()),
        tuple(example.task for example in examples),
    )


def _label_losses(
    split: SplitForward,
    language_model: LanguageModel,
    deltas: DeltaBatch,
    group: Sequence[_Query],
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


def _label_shares(group: Sequence[_Query], losses: Tensor, query_of_label: Tensor) -> Tensor:
    """Return each label's weight (labels,): its own share, of which a part moves to its answer's worst label."""
    shares = torch.tensor([share for query in group for share in query.shares], device=losses.device)
    moved = torch.tensor([query.worst_token for query in group], device=losses.device)[query_of_label]
    zeros = torch.zeros(len(group), device=losses.device)
    largest = zeros.scatter_reduce(0, query_of_label, losses, "amax", include_self=False)
    is_worst = (losses == largest[query_of_label]).float()
    sums, ties = zeros.index_add(0, query_of_label, shares), zeros.index_add(0, query_of_label, is_worst)
    return (1 - moved) * shares + moved * is_worst * (sums / ties)[query_of_label]


def by_length(queries: Sequence[_Query], max_padding: float = 0.25) -> Iterator[list[_Query]]:
    """Yield the queries in groups of similar length.

    Args:
        queries: In any order.
        max_padding: About the largest share of a group that may be padding; groups of fewer than 8 may have more.
    """
    if not queries:
        return
    ordered = sorted(queries, key=lambda query: len(query.text.ids))
    group: list[_Query] = []
    tokens = 0
    for query in ordered:
        length = len(query.text.ids)
        if len(group) >= 8 and tokens + length < (1 - max_padding) * length * (len(group) + 1):
            yield group
            group, tokens = [], 0
        group.append(query)
        tokens += length
    yield group
