"""The formulas of evaluation, by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructedit.evaluation.generation import matches, natural_stop, normalised
from instructedit.evaluation.intervals import estimate
from instructedit.evaluation.metrics.formulas import ngram_entropy, score_and_magnitude, sentiment_shift

likelihoods = st.lists(st.floats(-50, 0), min_size=1, max_size=5)


def test_sentiment_shift_by_hand() -> None:
    # wanted -1 on average, unwanted -3, wanted before -2: both factors are in favour, the second capped at 1
    assert sentiment_shift([-0.5, -1.5], [-3.0], [-2.0]) == pytest.approx(1 / (1 + math.exp(-2)))
    # wanted has become less likely than it was, by a factor e
    assert sentiment_shift([-2.0], [-2.0], [-1.0]) == pytest.approx(0.5 * math.exp(-1))


@given(likelihoods, likelihoods, likelihoods)
def test_sentiment_shift_is_a_share(after: list[float], other: list[float], before: list[float]) -> None:
    assert 0 <= sentiment_shift(after, other, before) <= 1
    assert sentiment_shift(after, other, before) <= sentiment_shift([v + 1 for v in after], other, before)


@pytest.mark.parametrize(
    ("after", "other", "before", "expected"), [(-1000.0, -1.0, -1.0, 0.0), (-1.0, -2000.0, -1000.0, 1.0)]
)
def test_sentiment_shift_of_extremes(after: float, other: float, before: float, expected: float) -> None:
    assert sentiment_shift([after], [other], [before]) == pytest.approx(expected)


def test_ngram_entropy_by_hand() -> None:
    # four different 2-grams (2 bits), three different 3-grams (log2 3 bits)
    assert ngram_entropy(list("abcde")) == pytest.approx((2 / 3 * 2 + 4 / 3 * math.log2(3)) / 2)
    # 2-grams: ab twice, ba once; 3-grams: aba, bab
    two = -(2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3))
    assert ngram_entropy(list("abab")) == pytest.approx((2 / 3 * two + 4 / 3) / 2)


@pytest.mark.parametrize("tokens", [[], ["a"], ["a", "a"], ["a"] * 30])
def test_repetition_has_no_entropy(tokens: list[str]) -> None:
    assert ngram_entropy(tokens) == 0


def test_score_and_magnitude_by_hand() -> None:
    assert score_and_magnitude(math.log(0.5), math.log(0.2)) == (1.0, pytest.approx(0.3))
    assert score_and_magnitude(math.log(0.2), math.log(0.5)) == (0.0, pytest.approx(-0.3))
    assert score_and_magnitude(-1.0, -1.0) == (0.0, 0.0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.integers(0, 3))
def test_estimate_contains_its_mean_and_repeats(values: list[float], seed: int) -> None:
    found = estimate(values, seed, resamples=500)
    assert found.mean == pytest.approx(sum(values) / len(values))
    assert min(values) - 1e-9 <= found.low <= found.mean + 1e-9
    assert found.mean - 1e-9 <= found.high <= max(values) + 1e-9
    assert found.count == len(values)
    assert found == estimate(values, seed, resamples=500)


@pytest.mark.parametrize("values", [[1.0] * 30, [0.0], [0.25] * 7])
def test_estimate_without_variation_is_a_point(values: list[float]) -> None:
    found = estimate(values)
    assert found.low == found.mean == found.high == values[0]


def test_estimate_is_about_as_wide_as_it_should_be() -> None:
    found = estimate([0.0, 1.0] * 200)
    half = 1.96 * 0.5 / math.sqrt(400)
    assert found.low == pytest.approx(0.5 - half, abs=0.005)
    assert found.high == pytest.approx(0.5 + half, abs=0.005)
    assert found.as_dict() == {"mean": 0.5, "low": round(found.low, 5), "high": round(found.high, 5), "count": 400}


def test_estimate_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        estimate([])


@pytest.mark.parametrize(
    ("text", "stop"),
    [
        (" Oston, near the river. She likes it.", "Oston, near the river."),
        ("Oston\nMaravel", "Oston"),
        ("\n Oston", "Oston"),
        ("Who? Me.", "Who?"),
        ("the U.S. army", "the U.S. army"),
        ("3.5 km", "3.5 km"),
        ("  ", ""),
    ],
)
def test_natural_stop(text: str, stop: str) -> None:
    assert natural_stop(text) == stop


@pytest.mark.parametrize(
    ("text", "plain"),
    [("  The   North. ", "the north"), ("OSTON!?", "oston"), ("a.b", "a.b"), ("straße", "strasse"), ("...", "")],
)
def test_normalised(text: str, plain: str) -> None:
    assert normalised(text) == plain


@pytest.mark.parametrize(
    ("continuation", "right"),
    [
        (" Oston. She was", True),
        (" oston", True),
        ("Old Oston\n", True),
        ("Oston harbour", False),
        ("Osto", False),
        ("", False),
    ],
)
def test_matches_is_exact_but_for_case_and_marks(continuation: str, right: bool) -> None:
    assert matches(continuation, ("Oston", "old Oston.")) is right


@pytest.mark.parametrize(
    ("continuation", "right"),
    [
        (" A.C. Oston. She was", True),
        (" A.C. Oston", True),
        (" A.C. Oston Rovers.", False),
        (" A.C.", False),
        (" A.C. Maravel.", False),
    ],
)
def test_a_full_stop_inside_an_answer_does_not_end_it(continuation: str, right: bool) -> None:
    assert matches(continuation, ("A.C. Oston",)) is right
