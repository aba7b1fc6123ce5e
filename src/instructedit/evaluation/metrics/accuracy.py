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
        definition="Locality on one kind of probe",
        formula="as `locality`; measured for the kinds that the task says must stay",
        queries=lambda record: record.out_of_scope.get(kind, []),
        reduce=_mean_score,
        group=MetricGroup.CORE,
    )


def _reached_of(kind: ProbeKind) -> Metric:
    return Metric(
        name=f"reached/{kind}",
        definition="Do probes inside the scope of the edit give their own new answers?",
        formula="accuracy of the probe's answer; measured for the kinds that the task says must change",
        queries=lambda record: record.in_scope.get(kind, []),
        reduce=_mean_score,
        group=MetricGroup.CORE,
        caveat="two-hop answers are partly right before the edit",
    )


def _portability_of(kind: ProbeKind) -> Metric:
    return Metric(
        name=f"portability/{kind}",
        definition="Portability on one kind of probe",
        formula="as `portability`",
        queries=lambda record: record.portability[kind],
        reduce=_mean_score,
    )


def _reliability_queries(record: RecordQueries) -> list[MetricQuery]:
    return [record.request]


ACCURACY_METRICS = (
    Metric(
        name="reliability",
        definition="Does the edited model give the target for the edit prompt?",
        formula="accuracy of the target; for `forget`: 1 if greedy decoding gives neither the old answer nor the "
        "target",
        queries=_reliability_queries,
        reduce=_mean_score,
        group=MetricGroup.CORE,
        caveat="a model that gives the target for every prompt scores 1, and so does, for `forget`, a model that "
        "writes nonsense: read it beside locality",
    ),
    Metric(
        name="reliability_before",
        definition="Does the unedited model give the target for the edit prompt?",
        formula="as `reliability`",
        queries=_reliability_queries,
        reduce=_mean_score_before,
        direction=Direction.NEUTRAL,
        group=MetricGroup.CORE,
        caveat="for ConvSent it is far from 0: parts of the replies are predictable",
    ),
    Metric(
        name="generalization",
        definition="Does the edit hold for paraphrases of the edit prompt?",
        formula="as `reliability`, mean over paraphrases",
        queries=lambda record: record.rephrases,
        reduce=_mean_score,
        group=MetricGroup.CORE,
        caveat="where a file has no paraphrases, the question form of the prompt is used (KnowEdit training files, the "
        "reconstructed WikiRecent test file)",
    ),
    Metric(
        name="locality",
        definition="Do answers that must not change stay the same?",
        formula="share of the answer's token positions with the same most likely token before and after the edit (or "
        "the same generated answer), mean over the probes of all kinds that the task says must stay",
        queries=lambda record: _all_of(record.out_of_scope),
        reduce=_mean_score,
        group=MetricGroup.CORE,
        caveat="the unedited answer need not be true",
    ),
    *(_locality_of(kind) for kind in ProbeKind),
    Metric(
        name="locality_prefixed",
        definition="Do these answers stay the same when the instruction precedes the prompt?",
        formula="as `locality`, with the instruction before the prompt both before and after the edit",
        queries=lambda record: record.out_of_scope_prefixed,
        reduce=_mean_score,
        caveat="low for an editor whose edit is triggered by the text of the instruction",
    ),
    Metric(
        name="following",
        definition="Does the edit do what this instruction says, and not what the opposite one says?",
        formula="mean over the probes of which the task and its opposite (`--opposite`) want different answers: those "
        "of `reached/<kind>` or `changed` where they must change, of `locality/<kind>` where they must stay, and for "
        "`forget` the request and its paraphrases",
        queries=lambda record: record.deciding,
        reduce=_mean_score,
        group=MetricGroup.CORE,
        caveat="compare with the swapped-instruction control: the same probes, the opposite instruction",
    ),
    Metric(
        name="kept",
        definition="Do other subjects with the old object keep their answer?",
        formula="as `locality`, on neighbours only, whether or not the task says that they must stay",
        queries=lambda record: record.neighbours_kept,
        reduce=_mean_score,
        direction=Direction.NEUTRAL,
        group=MetricGroup.CORE,
        caveat="compare with the swapped-instruction control",
    ),
    Metric(
        name="changed",
        definition="Do other subjects with the old object get the target?",
        formula="accuracy of the target on neighbours",
        queries=lambda record: record.neighbours_changed,
        reduce=_mean_score,
        direction=Direction.NEUTRAL,
        group=MetricGroup.CORE,
        caveat="wanted by the `rename` tasks, unwanted by all others",
    ),
    *(_reached_of(kind) for kind in PORTABILITY_KINDS),
    Metric(
        name="portability",
        definition="Do facts that follow from the new one hold as well?",
        formula="accuracy of the answer on reasoning, alias and logical probes",
        queries=lambda record: _all_of(record.portability),
        reduce=_mean_score,
        caveat="under teacher forcing only the first alias of an answer counts, under generation any",
    ),
    *(_portability_of(kind) for kind in PORTABILITY_KINDS),
)
