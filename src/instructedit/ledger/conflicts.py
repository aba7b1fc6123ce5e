"""Edits that contradict an earlier one: another answer, or another scope, for the same question."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from instructedit.errors import LedgerError
from instructedit.evaluation.edit_report import paraphrases_of
from instructedit.evaluation.generation import matches, normalised
from instructedit.ledger.entry import Entry, NewEdit
from instructedit.records import EditRequest


class ConflictKind(StrEnum):
    """What an earlier edit and a new one disagree about."""

    ANSWER = "another answer"
    SCOPE = "another instruction"
    NOTHING = "the same edit"


@dataclass(frozen=True)
class Conflict:
    """A new edit's conflict with an earlier one.

    Attributes:
        entry: the earlier edit.
        kind: what they disagree about.
    """

    entry: Entry
    kind: ConflictKind

    def __str__(self) -> str:
        request = self.entry.request
        return f"edit {self.entry.id} ({request.prompt!r} -> {request.target!r}): {self.kind.value}"


def find_conflicts(request: EditRequest, instruction: str | None, earlier: Iterable[Entry]) -> list[Conflict]:
    """Return the earlier edits that answer the same question, in their order.

    Two prompts ask the same question if they have the same words, or if one is a paraphrase of the other by the shipped
    relation templates. About other wordings a :class:`~instructedit.ledger.session.Session` asks the model.
    """
    return [
        Conflict(entry, conflict_kind(request, instruction, entry))
        for entry in earlier
        if ask_the_same(request, entry.request)
    ]


def refuse(conflicts: Iterable[Conflict], new: NewEdit) -> None:
    """Refuse a new edit that has conflicts.

    Raises:
        LedgerError: it has some; the message lists them.
    """
    by_number = {conflict.entry.id: conflict for conflict in conflicts}
    if by_number:
        listed = "\n".join(f"  - {by_number[number]}" for number in sorted(by_number))
        raise LedgerError(
            f"{new.request.prompt!r} -> {new.request.target!r} contradicts enabled edits:\n{listed}\n"
            "Disable them, or add the edit with on-conflict `replace`, or `keep` for both"
        )


def conflict_kind(request: EditRequest, instruction: str | None, entry: Entry) -> ConflictKind:
    """Return what a request and an edit that answers the same question disagree about."""
    if not matches(request.target, [entry.request.target]):
        return ConflictKind.ANSWER
    return ConflictKind.NOTHING if instruction == entry.instruction else ConflictKind.SCOPE


def ask_the_same(first: EditRequest, second: EditRequest) -> bool:
    """Return whether the prompts of two requests ask the same question, see :func:`find_conflicts`."""
    ways = {normalised(first.prompt), *map(normalised, paraphrases_of(first))}
    others = {normalised(second.prompt), *map(normalised, paraphrases_of(second))}
    return normalised(second.prompt) in ways or normalised(first.prompt) in others
