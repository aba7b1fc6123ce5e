"""Metrics of generated text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from instructedit.evaluation.metrics.formulas import mean, ngram_entropy
from instructedit.evaluation.metrics.metric import Metric, MetricGroup, Unit

if TYPE_CHECKING:
    from instructedit.evaluation.metrics.query import Result


def _entropy(results: Sequence[Result]) -> float:
    return mean([ngram_entropy(f"{result.query.prompt} {result.text}".split()) for result in results])


TEXT_METRICS = (
    Metric(
        name="fluency",
        definition="Diversity of the text that the edited model generates",
        formula="entropy of the 2-grams (weight 2/3) and 3-grams (weight 4/3) of 60 generated tokens after the edit "
        "prompt, halved (ROME, Meng et al. 2022)",
        queries=lambda record: [record.continuation],
        reduce=_entropy,
        unit=Unit.BITS,
        group=MetricGroup.TEXT,
        caveat="published tables multiply it by 100",
    ),
)
