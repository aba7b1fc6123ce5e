"""Neighbours among the records of one file, and the words they are asked in."""

from __future__ import annotations

import random

from instructedit.data.pool import RecordPool, sentence_of
from instructedit.records import EditRecord, EditRequest, Probe, ProbeKind


def record(prompt: str, subject: str | None, old: str, neighbour: str) -> EditRecord:
    return EditRecord(
        record_id=prompt,
        request=EditRequest(prompt=prompt, target="Lyrisch", subject=subject, ground_truth=old),
        probes=(Probe(kind=ProbeKind.NEIGHBOUR, prompt=neighbour, answers=(old,)),),
    )


RECORDS = [
    record("Ada speaks the language", "Ada", "Dutch", "The tongue of Bo was"),
    record("The tongue of Cleo was", "Cleo", "Dutch", "Dario speaks the language"),
    record("The tongue of Emil was", "Emil", "Czech", "Fay is fluent in"),
]
POOL = RecordPool(RECORDS)


def probe(prompt: str) -> Probe:
    return Probe(kind=ProbeKind.NEIGHBOUR, prompt=prompt, answers=("Dutch",))


def test_a_neighbour_is_queried_in_the_edits_sentence() -> None:
    asked = POOL.in_sentence_of(RECORDS[0].request, RECORDS[0].probes[0])
    assert asked == probe("Bo speaks the language")
    assert POOL.in_sentence_of(RECORDS[1].request, RECORDS[1].probes[0]) == probe("The tongue of Dario was")


def test_a_neighbour_whose_subject_cannot_be_found_stays_as_it_is() -> None:
    unknown = RECORDS[2].probes[0]
    assert POOL.in_sentence_of(RECORDS[0].request, unknown) is unknown
    nameless = RECORDS[0].request.model_copy(update={"subject": None})
    assert POOL.in_sentence_of(nameless, RECORDS[0].probes[0]) is RECORDS[0].probes[0]


def test_a_sentence_names_its_subject_once() -> None:
    assert sentence_of(RECORDS[0].request) == ("", " speaks the language")
    assert sentence_of(RECORDS[0].request.model_copy(update={"prompt": "Ada and Ada speak"})) is None
    assert sentence_of(RECORDS[0].request.model_copy(update={"prompt": "She speaks"})) is None


def test_own_neighbours_come_first_then_those_with_the_same_object() -> None:
    found = POOL.neighbours(RECORDS[0], 3, random.Random(0))
    assert found[0] == RECORDS[0].probes[0]
    assert {p.prompt for p in found[1:]} <= {"The tongue of Cleo was", "Dario speaks the language"}
    assert "Fay is fluent in" not in {p.prompt for p in found}
