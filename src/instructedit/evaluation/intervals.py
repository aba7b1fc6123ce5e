"""Means over edits with 95% bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95% interval.

    Attributes:
        mean: the mean over edits.
        low: lower end of the interval.
        high: upper end of the interval.
        count: number of edits.
    """

    mean: float
    low: float
    high: float
    count: int

    def as_dict(self) -> dict[str, float]:
        """Return a dictionary for JSON, rounded to five places."""
        return {key: round(value, 5) for key, value in asdict(self).items()}


def estimate(values: Sequence[float], seed: int = 0, resamples: int = 2000) -> Estimate:
    """Estimate a mean by percentile bootstrap over edits.

    The normal approximation would put ends of intervals above 1 where nearly every edit succeeds.

    Args:
        values: one per edit, the mean over its queries.
        seed: of the resamples.
        resamples: number of resamples of the edits, with replacement.

    Raises:
        ValueError: there are no values.
    """
    data = np.asarray(values, dtype=float)
    if data.size == 0:
        raise ValueError("an estimate needs at least one value")
    draws = np.random.default_rng(seed).integers(0, data.size, (resamples, data.size))
    low, high = np.percentile(data[draws].mean(1), (2.5, 97.5))
    return Estimate(float(data.mean()), float(low), float(high), int(data.size))
