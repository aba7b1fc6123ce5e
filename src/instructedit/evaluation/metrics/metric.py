"""The definition of a metric."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # metrics are listed and looked up where PyTorch is not needed
    from instructedit.evaluation.metrics.query import MetricQuery, Result
    from instructedit.evaluation.queries import RecordQueries


class Direction(StrEnum):
    """Which values are better; NEUTRAL where that depends on the task."""

    HIGHER = "higher"
    LOWER = "lower"
    NEUTRAL = "depends"


class Unit(StrEnum):
    """The unit of a metric's values.

    SHARE: a share of queries or tokens, in [0, 1].
    PROBABILITY: a probability, or a product or difference of probabilities.
    NATS: a log probability or entropy to base e.
    BITS: an entropy to base 2.
    """

    SHARE = "share"
    PROBABILITY = "probability"
    NATS = "nats"
    BITS = "bits"

    @property
    def in_percent(self) -> bool:
        """Whether tables show values times 100."""
        return self in (Unit.SHARE, Unit.PROBABILITY)

    def render(self, value: float) -> str:
        """Return a value as text for a table: one decimal place, in percent where the unit allows it."""
        return f"{100.0 * value if self.in_percent else value:.1f}"


class MetricGroup(StrEnum):
    """When a metric is measured, by what it costs.

    CORE: always.
    EXTENDED: by default; needs more queries per edit.
    TEXT: on request; generates a text after every edit.
    """

    CORE = "core"
    EXTENDED = "extended"
    TEXT = "text"


@dataclass(frozen=True)
class Metric:
    """A number per edit, computed from the responses to some queries.

    Attributes:
        name: the key in results; ``family/kind`` where it is about one kind of probe.
        definition: what is measured, in one phrase.
        formula: how it is computed, with its source.
        queries: returns the queries that the metric needs about a record's edit, none where it does not apply; called
            once per edit.
        reduce: computes the value from the results of these queries, in their order; None where it is not defined.
        unit: unit of the values.
        direction: which values are better.
        group: when the metric is measured.
        caveat: what to keep in mind when reading the values.
    """

    name: str
    definition: str
    formula: str
    queries: Callable[[RecordQueries], Sequence[MetricQuery]]
    reduce: Callable[[Sequence[Result]], float | None]
    unit: Unit = Unit.SHARE
    direction: Direction = Direction.HIGHER
    group: MetricGroup = MetricGroup.EXTENDED
    caveat: str = ""

    @property
    def family(self) -> str:
        """The name, with ``<kind>`` in place of the kind of probe."""
        family, slash, _ = self.name.partition("/")
        return f"{family}/<kind>" if slash else family
