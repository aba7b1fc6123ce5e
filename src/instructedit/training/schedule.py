"""The learning-rate schedule that all trainings of the project share."""

from __future__ import annotations

from fractions import Fraction


def learning_rate_factor(step: int, steps: int, *, warmup_steps: float, cooldown_fraction: float | Fraction) -> float:
    """Return the factor on the peak learning rate: linear warm-up, plateau, linear cooldown to zero.

    Args:
        step: Index of the step, from 0.
        steps: Number of steps of the whole run.
        warmup_steps: Steps until the peak is reached; 0 starts there.
        cooldown_fraction: Share of the steps, at the end, in which the rate falls; 0 never lowers it before the end.

    Returns:
        A number in (0, 1].
    """
    warmup = (step + 1) / max(1.0, warmup_steps)
    cooldown = (steps - step) / max(1.0, cooldown_fraction * steps)
    return float(min(1.0, warmup, cooldown))
