"""What training draws: validation edits, tasks by their shares, examples, neighbours."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructedit.data.pool import RecordPool
from instructedit.records import EditRecord, EditRequest, Probe, ProbeKind
from instructedit.tasks.loading import load_task
from instructedit.training.data import split_validation
from instructedit.training.mixture import Source, draw_batch, make_example, task_shares
from instructedit.training.recipe import Objective


def record_of(subject: str, index: int = 0) -> EditRecord:
    return EditRecord(record_id=str(index), request=EditRequest(prompt=f"{subject} is", target="x", subject=subject))


subjects = st.lists(st.integers(0, 40).map("subject {}".format), min_size=1, max_size=60)


@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), subjects, min_size=1), st.integers(1, 30), st.integers(0, 3))
def test_validation_subjects_are_never_trained_on(pools: dict[str, list[str]], per_task: int, seed: int) -> None:
    found = {name: [record_of(s, i) for i, s in enumerate(chosen)] for name, chosen in pools.items()}
    training, validation = split_validation(found, per_task, seed)
    trained = {record.request.subject for part in training.values() for record in part}
    held = {record.request.subject for part in validation.values() for record in part}
    assert not trained & held
    assert training.keys() == validation.keys() == found.keys()
    assert all(len(part) <= per_task for part in validation.values())
    for name, part in found.items():
        assert all(record in part for record in (*training[name], *validation[name]))
    assert (training, validation) == split_validation(found, per_task, seed)


def test_validation_takes_the_requested_number() -> None:
    found = {"a": [record_of(f"s{i}", i) for i in range(50)]}
    training, validation = split_validation(found, 7, 0)
    assert (len(training["a"]), len(validation["a"])) == (43, 7)


def sources_of(*sizes: int, weights: tuple[float, ...] = (1.0, 1.0)) -> list[Source]:
    task = load_task("recent")
    return [
        Source(task, RecordPool([record_of(f"{i}-{j}") for j in range(n)]), weights[i]) for i, n in enumerate(sizes)
    ]


@pytest.mark.parametrize(
    ("mixture", "temperature", "expected"),
    [("equal", 2.0, 0.5), ("size", 2.0, 0.1), ("temperature", 2.0, 0.25), ("temperature", 1.0, 0.1)],
)
def test_mixture_shares(mixture: str, temperature: float, expected: float) -> None:
    found = task_shares(sources_of(1, 9), mixture, temperature)
    assert found == pytest.approx([expected, 1 - expected])


def test_weights_multiply_shares() -> None:
    assert task_shares(sources_of(5, 5, weights=(3.0, 1.0)), "equal", 2.0) == pytest.approx([0.75, 0.25])


def test_batch_is_as_mixed_as_the_mixture() -> None:
    sources = sources_of(5, 5)
    for seed in range(20):
        drawn = draw_batch(sources, [0.25, 0.75], 8, Objective(), 0.0, random.Random(seed))
        assert Counter(item.request.subject[0] for item in drawn) == {"0": 2, "1": 6}


def test_requests_of_other_records_are_kept_as_well() -> None:
    sources = sources_of(5, 5)
    plain, more = (
        draw_batch(sources, [0.5, 0.5], 4, Objective(other_requests=count), 0.0, random.Random(0)) for count in (0, 2)
    )
    requests = {
        prompt for source in sources for r in source.pool.records for prompt in (r.request.prompt, *r.rephrases)
    }
    assert more[0].locality_targets[:-2] == plain[0].locality_targets
    for example in more:
        assert {prompt for prompt, _ in example.locality_targets[-2:]} <= requests


def test_rare_task_is_drawn_by_its_share() -> None:
    drawn = [
        item.request.subject[0]
        for seed in range(300)
        for item in draw_batch(sources_of(5, 5), [0.05, 0.95], 4, Objective(), 0.0, random.Random(seed))
    ]
    assert drawn.count("0") / len(drawn) == pytest.approx(0.05, abs=0.02)


def test_draws_depend_on_the_random_state_alone(records: list[EditRecord]) -> None:
    sources = [Source(load_task(name), RecordPool(records)) for name in ("counterfact", "rename")]
    one, other, third = (
        draw_batch(sources, [0.5, 0.5], 6, Objective(), 0.5, random.Random(s)) for s in ("a", "a", "b")
    )
    assert one == other != third


def test_rename_teaches_neighbours_what_counterfact_keeps(records: list[EditRecord]) -> None:
    keeping, renaming = (
        make_example(Source(load_task(name), RecordPool(records)), records[0], Objective(), 0.0, random.Random(0))
        for name in ("this-fact", "rename")
    )
    new = records[0].request.target
    old = records[0].request.ground_truth
    neighbours = {f"{name} was born in" for name in ("Hugo", "Nora", "Emil")}
    assert {(w.prompt, w.answer) for w in renaming.likelihood_targets if w.prompt in neighbours} >= {
        ("Hugo was born in", new)
    }
    assert ("Hugo was born in", old) in keeping.locality_targets
    assert not neighbours & {want.prompt for want in keeping.likelihood_targets}
    assert not neighbours & {prompt for prompt, _ in renaming.locality_targets}


def test_forgetting_lowers_both_answers_and_raises_none(records: list[EditRecord]) -> None:
    found = make_example(
        Source(load_task("forget"), RecordPool(records)), records[0], Objective(), 0.0, random.Random(0)
    )
    request = records[0].request
    assert found.likelihood_targets == ()
    assert {want.answer for want in found.unlikelihood_targets} == {request.target, request.ground_truth}
    assert {want.prompt for want in found.unlikelihood_targets} <= {request.prompt, *records[0].rephrases}
    assert found.locality_targets


@pytest.mark.parametrize(
    ("name", "risen", "kept"),
    [("aliases", {"a"}, set()), ("this-name", set(), {"a"}), ("implications", {"a", "r"}, set())],
)
def test_a_scope_reaches_its_own_probes(records: list[EditRecord], name: str, risen: set[str], kept: set[str]) -> None:
    probes = (
        Probe(kind=ProbeKind.SUBJECT_ALIAS, prompt="a", answers=("Oston",)),
        Probe(kind=ProbeKind.REASONING, prompt="r", answers=("Norland",)),
    )
    record = records[0].model_copy(update={"probes": probes})
    source = Source(load_task(name), RecordPool(records))
    found = make_example(source, record, Objective(locality_probes=9, propagation_weight=0.25), 0.0, random.Random(0))
    reached = {want.prompt: want for want in found.likelihood_targets if want.prompt in {"a", "r"}}
    assert reached.keys() == risen
    assert all(want.weight == 0.25 for want in reached.values())
    assert {prompt for prompt, _ in found.locality_targets} >= kept
    assert not {prompt for prompt, _ in found.locality_targets} & risen


@pytest.mark.parametrize("seed", range(5))
def test_hardest_probe_is_in_every_step(records: list[EditRecord], seed: int) -> None:
    def probe(kind: ProbeKind, prompt: str) -> Probe:
        return Probe(kind=kind, prompt=prompt, answers=("Maravel",))

    easy = [probe(ProbeKind.SAME_SUBJECT, f"Question {number}") for number in range(6)]
    probes = (*records[0].probes, *easy, probe(ProbeKind.FORGETFULNESS, "Hard question"))
    record = records[0].model_copy(update={"probes": probes})
    source = Source(load_task("counterfact"), RecordPool(records))
    asked = [
        prompt for prompt, _ in make_example(source, record, Objective(), 0.0, random.Random(seed)).locality_targets
    ]
    assert "Hard question" in asked
    assert len(asked) == Objective().locality_probes


def test_convsent_lowers_the_opposite(opinions: list[EditRecord]) -> None:
    source = Source(load_task("convsent"), RecordPool(opinions))
    found = make_example(source, opinions[0], Objective(), 0.0, random.Random(0))
    assert {want.answer for want in found.unlikelihood_targets} <= set(opinions[0].other_label_replies)
    assert found.unlikelihood_targets
    assert found.request.target in opinions[0].same_label_replies
    assert "garden gnomes" in found.request.prompt
    assert found.locality_targets == (("What do you think about roads?", "Not much."),)


people = st.sampled_from(["Ann", "Bo", "Cy", "Dee", "Eve"])
places = st.sampled_from(["Rome", "Oslo", "Bonn"])


@st.composite
def fact_records(draw_: st.DrawFn) -> EditRecord:
    name, old, new, other = draw_(people), draw_(places), draw_(places), draw_(people)
    return EditRecord(
        record_id="r",
        request=EditRequest(prompt=f"{name} lives in", target=new, subject=name, ground_truth=old),
        probes=(Probe(kind=ProbeKind.NEIGHBOUR, prompt=f"{other} stays in", answers=(old,)),) if other != name else (),
    )


@given(st.lists(fact_records(), min_size=1, max_size=12), st.integers(0, 5), st.integers(1, 4))
def test_neighbours_and_unrelated_leave_the_edit_alone(found: list[EditRecord], seed: int, count: int) -> None:
    pool = RecordPool(found)
    rng = random.Random(seed)
    for record in found:
        request = record.request
        neighbours = pool.neighbours(record, count, rng)
        unrelated = pool.unrelated(record, count, rng)
        assert len(neighbours) <= count
        assert len(unrelated) <= count
        assert all(request.subject not in probe.prompt for probe in (*neighbours, *unrelated))
        assert all(probe.answers == (request.ground_truth,) for probe in neighbours)
        assert not {request.ground_truth, request.target} & {p.answers[0] for p in unrelated}
        assert len({probe.prompt for probe in neighbours}) == len(neighbours)


def test_a_subject_under_another_spelling_is_no_neighbour() -> None:
    request = EditRequest(prompt="Ann lives in", target="Rome", subject="Ann", ground_truth="Oslo")
    same = request.model_copy(update={"prompt": "Where is ANN's home?"})
    pool = RecordPool([EditRecord(record_id=str(i), request=r) for i, r in enumerate((request, same))])
    assert pool.neighbours(pool.records[0], 2, random.Random(0)) == []
