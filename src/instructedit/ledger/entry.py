"""Edits as a ledger gives them back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from instructedit.deltas.delta import Delta
from instructedit.ledger.tables import State
from instructedit.records import EditRequest


@dataclass(frozen=True)
class NewEdit:
    """An edit to add to a ledger.

    Attributes:
        request: what to change.
        delta: how, for one base model; its metadata names editor, instruction and base.
        editor: the name or file of the editor that made it.
        editor_digest: SHA-256 of that file; None for a method without one.
        answer: the target as that editor was trained to write it.
        report: what the edit does by itself.
        health: what the model is like with all enabled edits.
        made_from: uid of the edit that it was made from for another base model or editor.
    """

    request: EditRequest
    delta: Delta
    editor: str
    editor_digest: str | None
    answer: str
    report: Mapping[str, Any] | None = None
    health: Mapping[str, Any] | None = None
    made_from: str | None = None


@dataclass(frozen=True)
class Entry:
    """An edit in a ledger; see :class:`~instructedit.ledger.tables.EditRow` for the fields."""

    id: int
    uid: str
    request: EditRequest
    instruction: str | None
    answer: str
    editor: str
    editor_digest: str | None
    base: str
    source: str
    delta: str
    state: State
    author: str
    created: datetime
    report: Mapping[str, Any] | None
    health: Mapping[str, Any] | None
    made_from: str | None

    def as_dict(self) -> dict[str, Any]:
        """Return a dictionary for JSON."""
        return {
            **vars(self),
            "request": self.request.model_dump(exclude_none=True),
            "state": self.state.value,
            "created": self.created.isoformat(),
        }


@dataclass(frozen=True)
class Event:
    """A change of an edit's state; see :class:`~instructedit.ledger.tables.EventRow`."""

    id: int
    edit: int
    state: State
    author: str
    time: datetime
    reason: str | None

    def as_dict(self) -> dict[str, Any]:
        """Return a dictionary for JSON."""
        return {**vars(self), "state": self.state.value, "time": self.time.isoformat()}
