"""Edits whose consequences are known: what follows, what is read backwards, what only looks like it."""

from __future__ import annotations

from pathlib import Path

import pytest

from instructedit.data.facts import Fact, read_facts
from instructedit.data.locations import data_file
from instructedit.data.readers import read_records
from instructedit.data.scope_edits import ScopeEdits
from instructedit.records import EditRecord, ProbeKind

BORN, COUNTRY, LANGUAGE, CAPITAL = "P19", "P17", "P37", "P36"
FACTS = [
    Fact("trex", BORN, "Lena", "Oston"),
    Fact("trex", BORN, "Otto", "Oston"),
    Fact("trex", BORN, "Mira", "Maravel"),
    Fact("trex", COUNTRY, "Oston", "Norland"),
    Fact("trex", COUNTRY, "Maravel", "Sudland"),
    Fact("trex", LANGUAGE, "Oston", "Norse"),
    Fact("trex", LANGUAGE, "Maravel", "Norse"),
    Fact("trex", CAPITAL, "Norland", "Oston"),
    Fact("trex", CAPITAL, "Sudland", "Maravel"),
]


def probes_of(record: EditRecord, kind: ProbeKind) -> dict[str, str]:
    return {probe.prompt: probe.answers[0] for probe in record.of_kind(kind)}


def test_what_follows_is_queried_with_a_description_of_the_new_object() -> None:
    [record] = ScopeEdits(FACTS).records({"Lena"}, 2)
    assert (record.request.ground_truth, record.request.target) == ("Oston", "Maravel")
    # Norse is spoken in both towns: it would tell nothing.
    [(prompt, answer)] = probes_of(record, ProbeKind.REASONING).items()
    assert answer == "Sudland"
    assert "Lena" in prompt
    assert "Maravel" not in prompt
    assert set(probes_of(record, ProbeKind.NEIGHBOUR).values()) == {"Oston"}
    assert all("Otto" in prompt for prompt in probes_of(record, ProbeKind.NEIGHBOUR))


def test_the_new_fact_is_read_backwards() -> None:
    records = ScopeEdits(FACTS).records({"Norland"}, 2)
    [record] = records
    assert (record.request.ground_truth, record.request.target) == ("Oston", "Maravel")
    backwards = probes_of(record, ProbeKind.LOGICAL)
    assert len(backwards) == 2
    assert all("Maravel" in prompt and answer == "Norland" for prompt, answer in backwards.items())


def test_a_subject_with_nothing_to_follow_is_left_out() -> None:
    edits = ScopeEdits([Fact("trex", "P413", "Lena", "goalkeeper"), Fact("trex", "P413", "Otto", "striker")])
    assert edits.subjects() == []
    assert edits.records({"Lena", "Otto"}, 4) == []


def test_same_seed_same_records() -> None:
    one, again, other = (ScopeEdits(read_facts(), seed).records({"Paris", "France", "London"}, 6) for seed in (1, 1, 2))
    assert one == again
    assert one != other


@pytest.mark.parametrize("name", ["bundled/scope-train.jsonl", "bundled/scope-test.jsonl"])
def test_shipped_records_have_the_requested_probes(name: str) -> None:
    known = {(fact.subject, fact.object) for fact in read_facts()}
    records = read_records(data_file(name, Path()))
    for record in records:
        request = record.request
        assert (request.subject, request.ground_truth) in known
        assert request.target != request.ground_truth
        assert record.of_kind(ProbeKind.REASONING, ProbeKind.LOGICAL)
        for probe in record.of_kind(ProbeKind.REASONING):
            assert (request.target, probe.answers[0]) in known
        assert all(probe.answers == (request.subject,) for probe in record.of_kind(ProbeKind.LOGICAL))


def test_shipped_training_and_test_subjects_are_apart() -> None:
    subjects = [
        {record.request.subject for record in read_records(data_file(f"bundled/scope-{part}.jsonl", Path()))}
        for part in ("train", "test")
    ]
    assert not subjects[0] & subjects[1]
