"""Metrics of answers: token accuracy under teacher forcing, exact match under free generation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from instructedit.evaluation.metrics.formulas import mean
from instructedit.evaluation.metrics.metric import Direction, Metric, MetricGroup
from instructedit.records import PORTABILITY_KINDS, ProbeKind

if TYPE_CHECKING:
    from instructedit.evaluation.metrics.query import MetricQuery, Result
    from instructedit.evaluation.queries import RecordQueries


def _mean_score(results: Sequence[Result]) -> float:
    return mean([result.score for result in results])


def _mean_score_before(results: Sequence[Result]) -> float:
    return mean([result.score_before for result in results])


def _all_of(by_kind: dict[ProbeKind, list[MetricQuery]]) -> list[MetricQuery]:
    return [query for queries in by_kind.values() for query in queries]


def _locality_of(kind: ProbeKind) -> Metric:
    return Metric(
        name=f"locality/{kind}",
        definition="Locality on one probe kind",
        formula="as `locality`, for each probe kind that is out of scope",
        queries=lambda record: record.out_of_scope.get(kind, []),
        reduce=_mean_score,
        group=MetricGroup.CORE,
    )


def _reached_of(kind: ProbeKind) -> Metric:
    return Metric(
        name=f"reached/{kind}",
        definition="Accuracy on in-scope probes of one kind, which have their own new answers",
        formula="accuracy of the probe's answer, for each probe kind that is in scope",
        queries=lambda record: record.in_scope.get(kind, []),
        reduce=_mean_score,
        group=MetricGroup.CORE,
        caveat="two-hop answers are partly correct before the edit",
    )


def _portability_of(kind: ProbeKind) -> Metric:
    return Metric(
        name=f"portability/{kind}",
        definition="Portability on one probe kind",
        formula="as `portability`",
        queries=lambda record: record.portability[kind],
        reduce=_mean_score,
    )


def _reliability_queries(record: RecordQueries) -> list[MetricQuery]:
    return [record.request]


ACCURACY_METRICS = (
    Metric(
        name="reliability",
        definition="Accuracy of the target on the edit prompt, after the edit",
        formula="accuracy of the target; for `forget`: 1 if greedy decoding gives neither the old answer nor the "
        "target",
        queries=_reliability_queries,
        reduce=_mean_score,
        group=MetricGroup.CORE,
        caveat="a model that gives the target for every prompt scores 1, and so does, for `forget`, a model that "
        "writes nonsense: read it together with locality",
    ),
    Metric(
        name="reliability_before",
        definition="Accuracy of the target on the edit prompt, before the edit",
        formula="as `reliability`",
        queries=_reliability_queries,
        reduce=_mean_score_before,
        direction=Direction.NEUTRAL,
        group=MetricGroup.CORE,
        caveat="for ConvSent it is far from 0: parts of the replies are predictable",
    ),
    Metric(
        name="known",
        definition="Whether the base model knows the fact: its answer to the edit prompt is the true one",
        formula="1 if every token of the true (old) answer is the most likely one before the edit (or the generated "
        "answer is the true one)",
        queries=lambda record: record.true_answer,
        reduce=lambda results: float(results[0].score_before == 1),
        direction=Direction.NEUTRAL,
        caveat="only where the request has a true answer",
    ),
    Metric(
        name="generalization",
        definition="Accuracy of the target on paraphrases of the edit prompt",
        formula="as `reliability`, mean over paraphrases",
        queries=lambda record: record.rephrases,
        reduce=_mean_score,
        group=MetricGroup.CORE,
        caveat="where a file has no paraphrases, the question form of the prompt is used (KnowEdit training files, the "
        "reconstructed WikiRecent test file)",
    ),
    Metric(
        name="locality",
        definition="Agreement of the answers to out-of-scope probes before and after the edit",
        formula="share of the answer's token positions with the same most likely token before and after the edit (or "
        "the same generated answer), mean over all out-of-scope probes",
        queries=lambda record: _all_of(record.out_of_scope),
        reduce=_mean_score,
        group=MetricGroup.CORE,
        caveat="the answer before the edit need not be correct",
    ),
    *(_locality_of(kind) for kind in ProbeKind),
    Metric(
        name="locality_prefixed",
        definition="Locality when the instruction precedes the prompt",
        formula="as `locality`, with the instruction before the prompt both before and after the edit",
        queries=lambda record: record.out_of_scope_prefixed,
        reduce=_mean_score,
        caveat="low for an editor whose edit is triggered by the text of the instruction",
    ),
    Metric(
        name="following",
        definition="Accuracy on the probes whose expected answers differ between the task and its opposite",
        formula="mean over these probes, scored as in `reached/<kind>` or `changed` where the answer must change, and "
        "as in `locality/<kind>` where it must not; for `forget` also the edit prompt and its paraphrases; set "
        "the opposite task by `--opposite`",
        queries=lambda record: record.deciding,
        reduce=_mean_score,
        group=MetricGroup.CORE,
        caveat="compare with the swapped-instruction control: the same probes, the opposite instruction",
    ),
    Metric(
        name="kept",
        definition="Locality on neighbours (other subjects with the old object)",
        formula="as `locality`, also for tasks that have neighbours in scope",
        queries=lambda record: record.neighbours_kept,
        reduce=_mean_score,
        direction=Direction.NEUTRAL,
        group=MetricGroup.CORE,
        caveat="compare with the swapped-instruction control",
    ),
    Metric(
        name="changed",
        definition="Accuracy of the target on neighbours (other subjects with the old object)",
        formula="accuracy of the target on neighbours",
        queries=lambda record: record.neighbours_changed,
        reduce=_mean_score,
        direction=Direction.NEUTRAL,
        group=MetricGroup.CORE,
        caveat="should be high for the `rename` tasks and low for all others",
    ),
    *(_reached_of(kind) for kind in PORTABILITY_KINDS),
    Metric(
        name="portability",
        definition="Accuracy on facts that follow from the new fact",
        formula="accuracy of the answer on reasoning, alias and logical probes",
        queries=lambda record: _all_of(record.portability),
        reduce=_mean_score,
        caveat="under teacher forcing only the first alias of an answer counts, under generation any",
    ),
    *(_portability_of(kind) for kind in PORTABILITY_KINDS),
)
