"""Means with 95% intervals over edits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A mean over ``count`` edits with the ends of its 95% interval."""

    mean: float
    low: float
    high: float
    count: int

    def as_dict(self) -> dict[str, float]:
        """For JSON, rounded to five places."""
        return {key: round(value, 5) for key, value in asdict(self).items()}


def estimate(values: Sequence[float], seed: int = 0, resamples: int = 2000) -> Estimate:
    """Percentile bootstrap over edits: edits are drawn with replacement, probes stay with their edit.

    The normal approximation would put ends above 1 where nearly every edit succeeds, which is where we measure.
    """
    data = np.asarray(values, dtype=float)
    if data.size == 0:
        raise ValueError("an estimate needs at least one value")
    draws = np.random.default_rng(seed).integers(0, data.size, (resamples, data.size))
    low, high = np.percentile(data[draws].mean(1), (2.5, 97.5))
    return Estimate(float(data.mean()), float(low), float(high), int(data.size))
