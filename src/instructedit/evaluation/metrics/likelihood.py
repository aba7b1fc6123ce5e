"""Metrics of answer probabilities: SERAC's sentiment shift and ROME's score and magnitude."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from instructedit.evaluation.metrics.formulas import mean, score_and_magnitude, sentiment_shift
from instructedit.evaluation.metrics.metric import Direction, Metric, MetricGroup, Unit

if TYPE_CHECKING:
    from instructedit.evaluation.metrics.query import MetricQuery, Result
    from instructedit.evaluation.queries import RecordQueries

#: (new object, true object) at each prompt.
ObjectQueries = list[tuple["MetricQuery", "MetricQuery"]]


def _sentiment_shift(results: Sequence[Result]) -> float | None:
    wanted = [result for result in results if result.query.before]  # only these are needed of the unedited model
    unwanted = [result for result in results if not result.query.before]
    if not wanted or not unwanted:
        return None
    return sentiment_shift(
        [result.score for result in wanted],
        [result.score for result in unwanted],
        [result.score_before for result in wanted],
    )


def _object_metrics(
    name: str, prompts: str, objects: Callable[[RecordQueries], ObjectQueries], *, true_is_right: bool = False
) -> tuple[Metric, Metric]:
    """Return ROME's score and magnitude over one set of prompts."""

    def queries(record: RecordQueries) -> list[MetricQuery]:
        return [query for pair in objects(record) for query in pair]

    def scores(results: Sequence[Result]) -> Iterator[tuple[float, float]]:
        for new, true in zip(results[::2], results[1::2], strict=True):
            right, wrong = (true, new) if true_is_right else (new, true)
            yield score_and_magnitude(right.score, wrong.score)

    right, wrong = ("true", "new") if true_is_right else ("new", "true")
    score = Metric(
        name=f"{name}_score",
        definition=f"Share of {prompts} for which the {right} object is likelier than the {wrong} one",
        formula="comparison of mean token log likelihoods (ROME, Meng et al. 2022)",
        queries=queries,
        reduce=lambda results: mean([score for score, _ in scores(results)]),
        caveat="ignores the size of the difference",
    )
    magnitude = Metric(
        name=f"{name}_magnitude",
        definition=f"Probability of the {right} object minus that of the {wrong} one, on {prompts}",
        formula=f"P({right}) - P({wrong}), each the exponential of a mean token log likelihood (ROME, Meng et al. "
        "2022)",
        queries=queries,
        reduce=lambda results: mean([magnitude for _, magnitude in scores(results)]),
        unit=Unit.PROBABILITY,
    )
    return score, magnitude


LIKELIHOOD_METRICS = (
    Metric(
        name="certainty",
        definition="How sure the base model is of the true (old) answer",
        formula="exponential of the mean token log likelihood of the true answer at the edit prompt, before the edit",
        queries=lambda record: record.true_likelihood,
        reduce=lambda results: math.exp(results[0].score_before),
        unit=Unit.PROBABILITY,
        direction=Direction.NEUTRAL,
        caveat="only where the request has a true answer",
    ),
    Metric(
        name="sentiment_shift",
        definition="ConvSent: likelihood of replies with the target sentiment relative to the other sentiment, reduced "
        "if the edit lowers it",
        formula="sigmoid(l+ after - l- after) * min(1, exp(l+ after - l+ before)), l the mean token log likelihood of "
        "up to 5 replies with the target (+) or the other (-) sentiment (SERAC, Mitchell et al. 2022)",
        queries=lambda record: [*record.wanted_replies, *record.unwanted_replies],
        reduce=_sentiment_shift,
        unit=Unit.PROBABILITY,
        group=MetricGroup.CORE,
        caveat="0.5 means no shift",
    ),
    *_object_metrics("efficacy", "edit prompts", lambda record: record.request_objects),
    *_object_metrics("paraphrase", "paraphrases", lambda record: record.rephrase_objects),
    *_object_metrics("neighbourhood", "neighbour prompts", lambda record: record.neighbour_objects, true_is_right=True),
)
