"""The formulas of the metrics, on plain numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean."""
    return sum(values) / len(values)


def sentiment_shift(same_after: Sequence[float], other_after: Sequence[float], same_before: Sequence[float]) -> float:
    """Compute SERAC's edit success for ConvSent (Mitchell et al., ICML 2022, section 5.1).

        ES = z_sentiment * z_topic
        z_sentiment = sigmoid(l+_e - l-_e)      replies with the wanted sentiment are likelier than the others
        z_topic = min(1, exp(l+_e - l+_b))      and no less likely than before the edit

    Args:
        same_after: mean token log likelihood of each reply with the wanted sentiment after the edit (l+_e).
        other_after: of each reply with the opposite sentiment after the edit (l-_e).
        same_before: of each reply with the wanted sentiment before the edit (l+_b).

    Returns:
        A number in [0, 1].
    """
    after, other, before = (mean(values) for values in (same_after, other_after, same_before))
    z_sentiment = 1 / (1 + math.exp(min(other - after, 700.0)))  # the exponential of more overflows
    z_topic = math.exp(min(after - before, 0.0))
    return z_sentiment * z_topic


def ngram_entropy(tokens: Sequence[str]) -> float:
    """Compute the entropy of a text's n-grams in bits, ``(2/3 H_2 + 4/3 H_3) / 2``; repetition lowers it.

    The weights are those of ROME (Meng et al., NeurIPS 2022), whose tables show the value times 100.
    """

    def entropy(n: int) -> float:
        counts = Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
        total = sum(counts.values())
        return -sum(c / total * math.log2(c / total) for c in counts.values()) if total else 0.0

    return (2 / 3 * entropy(2) + 4 / 3 * entropy(3)) / 2


def score_and_magnitude(new: float, true: float) -> tuple[float, float]:
    """Compute ROME's score, 1 if P(new) > P(true), and magnitude, P(new) - P(true), for one prompt.

    Args:
        new: mean token log likelihood of the new object.
        true: mean token log likelihood of the true object; for neighbours the caller swaps the two.
    """
    return float(new > true), math.exp(new) - math.exp(true)
