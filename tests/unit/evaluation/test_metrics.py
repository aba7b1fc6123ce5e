"""The formulas of evaluation by hand, and the registry of metrics."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructedit.errors import DataError
from instructedit.evaluation.generation import begins_with, matches, natural_stop, normalised
from instructedit.evaluation.intervals import estimate
from instructedit.evaluation.metrics import (
    Direction,
    Metric,
    MetricGroup,
    Unit,
    get_metric,
    register_metric,
    registered_metrics,
    registry,
)
from instructedit.evaluation.metrics.formulas import ngram_entropy, score_and_magnitude, sentiment_shift
from instructedit.evaluation.metrics.listing import metric_families, metrics_as_markdown
from instructedit.evaluation.metrics.query import Criterion, MetricQuery
from instructedit.evaluation.queries import RecordQueries
from instructedit.evaluation.responses import _beginning_score
from instructedit.instructions.trial import METRICS
from instructedit.records import EditRecord
from instructedit.tasks.loading import load_task

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


@pytest.mark.parametrize(
    ("continuation", "begins"),
    [
        (" Oston, since 1960. She was", True),
        (" the town of Oston", False),
        (' the "Oston".', True),
        (" old oston and more", True),
        (" Ostonia", False),
        (" Maravel, not Oston", False),
        ("", False),
        ("\n", False),
    ],
)
def test_an_answer_that_begins_a_text(continuation: str, begins: bool) -> None:
    assert begins_with(continuation, ("Oston", "old Oston.")) is begins
    assert not begins_with(continuation, ("",))


@pytest.mark.parametrize(
    ("before", "after", "unchanged"),
    [
        ("Oston, by the sea.", "Oston. It is old.", 1),
        ("Oston.", "Maravel.", 0),
        ("Maravel, I think.", "Oston.", 0),
        ("a small town in the north", "a small house", 1),  # the answer has two words
        ("a small town in the north", "a large town in the north", 0),
    ],
)
def test_a_generated_answer_is_unchanged_if_its_beginning_is(before: str, after: str, unchanged: int) -> None:
    query = MetricQuery(0, "Where?", ("old Oston", "Oston"), criterion=Criterion.UNCHANGED)
    assert _beginning_score(query, after, before) == unchanged


def test_an_absent_answer_does_not_begin_the_text() -> None:
    query = MetricQuery(0, "Where?", ("Oston",), criterion=Criterion.ABSENT)
    assert _beginning_score(query, "Oston, I think", "") == 0
    assert _beginning_score(query, "I do not know", "") == 1


DOCS = Path(__file__).parents[3] / "docs" / "metrics.md"


@pytest.fixture
def extra(monkeypatch: pytest.MonkeyPatch) -> Metric:
    """A metric that a program registers."""
    monkeypatch.setattr(registry, "_REGISTERED", {})
    return register_metric(
        Metric("extra", "Is it there?", "1", queries=lambda record: [record.request], reduce=lambda results: 1.0)
    )


def test_families_are_those_of_published_results() -> None:
    likelihood = [
        f"{name}_{form}" for name in ("efficacy", "paraphrase", "neighbourhood") for form in ("score", "magnitude")
    ]
    assert metric_families().keys() == {
        "reliability", "reliability_before", "generalization", "locality", "locality/<kind>", "locality_prefixed",
        "following", "kept", "changed", "reached/<kind>", "portability", "portability/<kind>", "sentiment_shift",
        *likelihood, "fluency", "known", "certainty",
    }  # fmt: skip


def test_metrics_are_found_by_name_and_group(extra: Metric) -> None:
    assert get_metric("extra") is extra is registered_metrics()[-1]
    assert extra in registered_metrics(MetricGroup.EXTENDED)
    assert extra not in registered_metrics(MetricGroup.CORE, MetricGroup.TEXT)
    assert "| `extra` | Is it there? | 1 | share | higher | extended |  |" in metrics_as_markdown()


def test_a_name_is_registered_once(extra: Metric) -> None:
    with pytest.raises(DataError, match="'extra' is already registered"):
        register_metric(extra)
    with pytest.raises(DataError, match="'locality' is already registered"):
        register_metric(get_metric("locality"))


def test_unknown_metric_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(DataError, match=r"no metric is named 'relability'\. Did you mean 'reliability'\?"):
        get_metric("relability")
    with pytest.raises(DataError, match=r"no metric is named 'x'\. `instructedit metrics` lists all"):
        get_metric("x")


@pytest.mark.parametrize(
    ("name", "shown"), [("reliability", "25.0"), ("efficacy_magnitude", "25.0"), ("fluency", "0.2")]
)
def test_unit_decides_how_a_value_is_shown(name: str, shown: str) -> None:
    assert get_metric(name).unit.render(0.25) == shown


def test_units_and_directions() -> None:
    assert {metric.name for metric in registered_metrics() if metric.unit is Unit.BITS} == {"fluency"}
    assert {metric.name for metric in registered_metrics() if metric.direction is Direction.NEUTRAL} == {
        "reliability_before",
        "known",
        "certainty",
        "kept",
        "changed",
    }


def test_docs_table_is_generated() -> None:
    block = DOCS.read_text(encoding="utf-8").split("<!-- metrics -->\n")[1].split("\n<!-- end -->")[0]
    assert block == metrics_as_markdown(), "instructedit metrics --markdown"


def test_metrics_that_instructions_are_judged_by_are_registered() -> None:
    assert [get_metric(name).name for name in METRICS] == list(METRICS)


@pytest.mark.parametrize("task", ["counterfact", "rename", "forget"])
def test_queries_are_ordered_as_made_whatever_needs_them(records: list[EditRecord], task: str) -> None:
    plan = RecordQueries(0, records[0], load_task(task), load_task("this-fact"), instruction="Task: x")
    metrics = registered_metrics()
    orders = [
        plan.ordered(query for metric in chosen for query in metric.queries(plan))
        for chosen in (metrics, metrics[::-1])
    ]
    assert orders[0] == orders[1]
    assert len(orders[0]) == len(set(orders[0]))
