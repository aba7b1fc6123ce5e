"""Questions that no edit is about, as locality prompts.

An editor that meets few kinds of questions in training answers the others by the edit.
"""

from __future__ import annotations

import random

from instructedit.assets import read_yaml
from instructedit.data.facts import relation_templates
from instructedit.records import EditRecord

#: Shares of questions that begin with a small letter, and that end without a question mark.
LOWER_CASE, WITHOUT_MARK = 0.5, 0.3
#: Share of questions from the shipped list; the others ask for a relation of another record's subject.
GENERAL = 0.5


def draw_question(record: EditRecord, rng: random.Random) -> tuple[str, str]:
    """Return a question and an answer, which need not be true: what the model says after the question must stay.

    Args:
        record: of another edit; the question may ask for a relation of its subject.
        rng: source of the draws.
    """
    request = record.request
    if request.subject is None or rng.random() < GENERAL:
        question, answer = rng.choice(read_yaml("unrelated_questions.yaml")["questions"])
    else:
        relation = rng.choice(sorted(relation_templates()))
        template = rng.choice(relation_templates()[relation]["questions"])
        question, answer = template.replace("{subject}", request.subject), request.ground_truth or request.target
    return as_typed(question, rng), answer


def as_typed(question: str, rng: random.Random) -> str:
    """Return a question as people type it: at times with a small first letter, or without its question mark."""
    if rng.random() < LOWER_CASE:
        question = question[0].lower() + question[1:]
    return question.removesuffix("?") if rng.random() < WITHOUT_MARK else question
