"""Questions that no edit is about, among what training keeps."""

from __future__ import annotations

import random

from instructedit.assets import read_yaml
from instructedit.records import EditRecord, EditRequest
from instructedit.training.unrelated_questions import as_typed, draw_question

RECORD = EditRecord(
    record_id="0", request=EditRequest(prompt="Lena was born in", target="Oston", subject="Lena", ground_truth="Arden")
)


def test_questions_are_of_both_kinds() -> None:
    rng = random.Random(0)
    drawn = [draw_question(RECORD, rng) for _ in range(200)]
    about_the_record = [question for question, answer in drawn if "Lena" in question and answer == "Arden"]
    general = {answer for _, answer in read_yaml("unrelated_questions.yaml")["questions"]}
    assert 70 <= len(about_the_record) <= 130
    assert sum(answer in general for _, answer in drawn) == 200 - len(about_the_record)


def test_a_record_without_a_subject_gives_general_questions_alone() -> None:
    record = RECORD.model_copy(update={"request": RECORD.request.model_copy(update={"subject": None})})
    rng = random.Random(0)
    assert all("Arden" not in draw_question(record, rng) for _ in range(50))


def test_questions_are_typed_in_several_ways() -> None:
    rng = random.Random(0)
    typed = {as_typed("Who is that?", rng) for _ in range(50)}
    assert typed == {"Who is that?", "who is that?", "Who is that", "who is that"}


def test_shipped_questions_differ() -> None:
    questions = [question for question, _ in read_yaml("unrelated_questions.yaml")["questions"]]
    assert len(questions) == len(set(questions)) > 100
