"""Recombined edits: what is new in them, what stays, and what is left alone."""

from __future__ import annotations

import random

from instructedit.records import EditRecord, EditRequest, Probe, ProbeKind
from instructedit.training.recombine import Recombination


def record(subject: str, relation: str, target: str) -> EditRecord:
    prompt = f"The {relation} of {subject} is"
    return EditRecord(
        record_id=subject,
        request=EditRequest(prompt=prompt, target=target, subject=subject, ground_truth="the old one"),
        rephrases=(f"Whose {relation} is {subject}'s?",),
        probes=(
            Probe(kind=ProbeKind.SAME_SUBJECT, prompt=f"The age of {subject} is", answers=("9",)),
            Probe(kind=ProbeKind.SAME_SUBJECT, prompt=f"The river of {subject} is", answers=("the Tave",)),
            Probe(kind=ProbeKind.FORGETFULNESS, prompt=f"{prompt}, which is not {target}, is", answers=(target,)),
            Probe(kind=ProbeKind.REASONING, prompt="The mayor of that town is", answers=("Ivo",)),
        ),
    )


RECORDS = [record("Oston", "mayor", "Lena"), record("Maravel", "mayor", "Otto"), record("Tave", "river", "Mira")]
DRAWS = [Recombination(RECORDS)(RECORDS[0], random.Random(seed)) for seed in range(40)]


def test_targets_come_from_the_same_relation() -> None:
    by_prompt = {found.request.prompt: set[str]() for found in DRAWS}
    for found in DRAWS:
        by_prompt[found.request.prompt].add(found.request.target)
    assert by_prompt == {"The mayor of Oston is": {"Lena", "Otto"}, "The river of Oston is": {"Mira"}}


def test_the_subject_keeps_its_other_facts_and_loses_what_hung_on_the_old_target() -> None:
    for found in DRAWS:
        kinds = {kind: [p.prompt for p in found.of_kind(kind)] for kind in ProbeKind}
        assert found.request.prompt not in kinds[ProbeKind.SAME_SUBJECT]
        assert "The age of Oston is" in kinds[ProbeKind.SAME_SUBJECT]
        excluding = found.request.prompt.removesuffix(" is") + f", which is not {found.request.target}, is"
        assert kinds[ProbeKind.FORGETFULNESS] == [excluding]
        assert not kinds[ProbeKind.REASONING]


def test_a_new_sentence_gets_its_own_paraphrase_and_no_old_answer() -> None:
    moved = [found for found in DRAWS if found.request.prompt != RECORDS[0].request.prompt]
    assert moved
    for found in moved:
        assert found.rephrases == ("What is the river of Oston?",)
        assert found.request.ground_truth is None


def test_a_record_that_cannot_be_taken_apart_comes_back() -> None:
    free = record("Oston", "mayor", "Lena")
    free = free.model_copy(update={"request": free.request.model_copy(update={"prompt": "Oston lies on the"})})
    rng = random.Random(0)
    assert Recombination(RECORDS)(free, rng) is free
    without_subject = free.model_copy(update={"request": RECORDS[0].request.model_copy(update={"subject": None})})
    assert Recombination(RECORDS)(without_subject, rng) is without_subject
