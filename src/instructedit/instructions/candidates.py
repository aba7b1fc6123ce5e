"""Candidate instruction templates: proposed texts, validated before any editor sees them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from instructedit.endpoints import secrets
from instructedit.tasks.task import Task

FEWEST_WORDS, MOST_WORDS = 3, 80
MOST_CHARACTERS = 1000


@dataclass(frozen=True)
class Candidate:
    """A template and its origin.

    Attributes:
        text: the template.
        proposer: who wrote it; ``task`` for the templates that a search starts from.
        parent: the text that it was made from, if there is one.
        round: the round of proposals; 0 is the start.
    """

    text: str
    proposer: str
    parent: str | None = None
    round: int = 0


def validation_error(text: object, task: Task) -> str | None:
    """Return why a text cannot be an instruction template of the task, or None where it can."""
    if not isinstance(text, str) or not text.strip():
        return "is not a string" if not isinstance(text, str) else "is blank"
    if len(text.splitlines()) > 1:
        return "contains a line break"
    if any("\ud800" <= character <= "\udfff" for character in text):
        return "is not valid Unicode"
    if secrets.holds_secret(text) or secrets.MARK in text:
        return f"contains a secret, or {secrets.MARK} in place of one"
    if len(text) > MOST_CHARACTERS:
        return f"has more than {MOST_CHARACTERS:,} characters"
    words = len(text.split())
    if not FEWEST_WORDS <= words <= MOST_WORDS:
        return f"has {words} words; {FEWEST_WORDS} to {MOST_WORDS} are allowed"
    required = task.instructions.placeholders
    missing = [mark for mark in required if mark not in text]
    if missing:
        return f"lacks {' and '.join(missing)}"
    unknown = sorted(set(re.findall(r"\[[A-Z_]+\]", text)) - set(required))
    return f"contains {' and '.join(unknown)}, which the task's templates do not use" if unknown else None
