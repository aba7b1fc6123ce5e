"""The queries of a batch: every prompt and answer that the loss needs, with the weight of each of its labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from instructedit.editors.gradient import GradientEditor
from instructedit.models.language_model import LanguageModel
from instructedit.models.text import Encoded
from instructedit.training.mixture import Example
from instructedit.training.recipe import Objective


class LossKind(Enum):
    """The loss of a query's labels."""

    LIKELIHOOD = "likelihood"
    UNLIKELIHOOD = "unlikelihood"
    LOCALITY = "locality"


@dataclass(frozen=True)
class Query:
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


class _QueryBuilder:
    """Collects the queries of a batch by the loss that they are for."""

    def __init__(self, editor: GradientEditor, language_model: LanguageModel, examples: Sequence[Example]) -> None:
        self._editor, self._text, self._examples = editor, language_model.text, examples
        self.queries: dict[LossKind, list[Query]] = {
            LossKind.LIKELIHOOD: [],
            LossKind.UNLIKELIHOOD: [],
            LossKind.LOCALITY: [],
        }

    def pair(self, prompt: str, answer: str) -> Encoded:
        """Tokenise a prompt with an answer that is trained to end where the editor's answers end."""
        return self._text.encode_pair(prompt, self._editor.answer(answer))

    def add(
        self, loss: LossKind, edit: int, text: Encoded, weight: float, factor: float, first_token: float = 1.0
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
        worst_token = 0.0 if loss is LossKind.UNLIKELIHOOD else self._examples[edit].worst_token
        self.queries[loss].append(Query(text, edit, shares, factor, worst_token))


def _labels(text: Encoded) -> int:
    return len(text.ids) - text.target_start


def make_queries(
    editor: GradientEditor,
    language_model: LanguageModel,
    examples: Sequence[Example],
    objective: Objective,
    mean_over_processes: Callable[[float], float],
) -> Mapping[LossKind, list[Query]]:
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
            builder.add(LossKind.LIKELIHOOD, edit, text, weight, c_edit, objective.first_token_weight)
        for target in example.unlikelihood_targets:
            text = language_model.text.encode_pair(target.prompt, target.answer)
            builder.add(LossKind.UNLIKELIHOOD, edit, text, target.weight, c_edit)
        edit_labels = sum(_labels(text) for text in texts)
        c_loc = objective.locality_weight * example.locality
        for text in texts:
            # Per token, long answers weigh more across the whole batch; per prompt, every edit weighs the same.
            if per_token:
                share = _labels(text) / edit_labels
                builder.add(LossKind.LOCALITY, edit, text, share, c_loc * edit_labels / batch_labels)
            else:
                first_token = objective.locality_first_token_weight
                builder.add(LossKind.LOCALITY, edit, text, 1 / len(texts), c_loc / len(examples), first_token)
    return builder.queries


def by_length(queries: Sequence[Query], max_padding: float = 0.25) -> Iterator[list[Query]]:
    """Yield the queries in groups of similar length.

    Args:
        queries: In any order.
        max_padding: About the largest share of a group that may be padding; groups of fewer than 8 may have more.
    """
    if not queries:
        return
    ordered = sorted(queries, key=lambda query: len(query.text.ids))
    group: list[Query] = []
    tokens = 0
    for query in ordered:
        length = len(query.text.ids)
        if len(group) >= 8 and tokens + length < (1 - max_padding) * length * (len(group) + 1):
            yield group
            group, tokens = [], 0
        group.append(query)
        tokens += length
    yield group
