"""The formulas. Each has a card in docs/metrics.md."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence


def sentiment_shift(same_after: Sequence[float], other_after: Sequence[float], same_before: Sequence[float]) -> float:
    """SERAC's edit success for ConvSent (Mitchell et al., ICML 2022, section 5.1), in [0, 1].

        ES = z_sentiment * z_topic
        z_sentiment = sigmoid(l+_e - l-_e)      wanted replies have become likelier than unwanted ones
        z_topic = min(1, exp(l+_e - l+_b))      and no less likely than they were

    Args:
        same_after, other_after: mean token log likelihoods of replies with the wanted and with the opposite
            sentiment after the edit (e).
        same_before: of the wanted ones before it (b).
    """
    after, other, before = (sum(v) / len(v) for v in (same_after, other_after, same_before))
    z_sentiment = 1 / (1 + math.exp(min(other - after, 700.0)))  # the exponential of more overflows
    z_topic = math.exp(min(after - before, 0.0))
    return z_sentiment * z_topic


def ngram_entropy(tokens: Sequence[str]) -> float:
    """Fluency: the entropy, in bits, of a text's 2-grams and 3-grams, weighted 2/3 and 4/3 over 2.

    Meng et al. (ROME, 2022) weigh the two so; repetition lowers it. The published tables show it times 100.
    """

    def entropy(n: int) -> float:
        counts = Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
        total = sum(counts.values())
        return -sum(c / total * math.log2(c / total) for c in counts.values()) if total else 0.0

    return (2 / 3 * entropy(2) + 4 / 3 * entropy(3)) / 2


def score_and_magnitude(new: float, true: float) -> tuple[float, float]:
    """ROME's score and magnitude of one prompt, from mean token log likelihoods of the new and the true object.

    Score is 1 if P(new) > P(true), magnitude is P(new) - P(true). For neighbours the caller swaps the two.
    """
    return float(new > true), math.exp(new) - math.exp(true)
