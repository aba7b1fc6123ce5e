"""The tables of a ledger.

deltas         what edits change, by the SHA-256 of their file; equal deltas are stored once
edits          requests with their delta, state and report
events         everything that happened to an edit, in order; its state is that of its last event
combinations   deltas of several edits together, which can be computed again
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, DateTime, ForeignKey, LargeBinary, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

DIGEST = String(64)
UID = String(32)


class State(StrEnum):
    """Whether an edit is in force. A reverted edit is kept for the record and cannot be enabled again."""

    ENABLED = "enabled"
    DISABLED = "disabled"
    REVERTED = "reverted"


class Table(DeclarativeBase):
    """Base class of the tables."""


class DeltaRow(Table):
    """The file of a delta."""

    __tablename__ = "deltas"

    digest: Mapped[str] = mapped_column(DIGEST, primary_key=True)
    content: Mapped[bytes] = mapped_column(LargeBinary, deferred=True)


class EditRow(Table):
    """An edit.

    Attributes:
        id: number in this ledger, from 1.
        uid: the same in every ledger that it is imported into.
        request: an :class:`EditRequest` as JSON.
        instruction: the text that the editor read.
        answer: the target as the editor was trained to write it, perhaps with a full stop.
        editor: name of the method, or the name or file of the trained editor.
        editor_digest: SHA-256 of the editor's file; None for a method without one.
        base: fingerprint of the base model.
        source: the name under which that model was loaded; for people.
        delta: digest of its delta.
        state: see :class:`State`.
        author: who added it.
        created: when, in UTC.
        report: what it did by itself, as JSON.
        health: what the model was like with all enabled edits when it was added, as JSON.
        made_from: uid of the edit that it was made from for another base model or editor.
    """

    __tablename__ = "edits"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    uid: Mapped[str] = mapped_column(UID, unique=True)
    request: Mapped[dict[str, Any]] = mapped_column(JSON)
    instruction: Mapped[str | None] = mapped_column(Text)
    answer: Mapped[str] = mapped_column(Text)
    editor: Mapped[str] = mapped_column(Text)
    editor_digest: Mapped[str | None] = mapped_column(DIGEST)
    base: Mapped[str] = mapped_column(String(64), index=True)
    source: Mapped[str] = mapped_column(Text)
    delta: Mapped[str] = mapped_column(ForeignKey("deltas.digest"))
    state: Mapped[str] = mapped_column(String(16))
    author: Mapped[str] = mapped_column(Text)
    created: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    report: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    health: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    made_from: Mapped[str | None] = mapped_column(UID)


class EventRow(Table):
    """Something that happened to an edit.

    Attributes:
        id: running number.
        edit: the edit's number.
        state: that it was given.
        author: who did it.
        time: when, in UTC.
        reason: why, where something was given.
    """

    __tablename__ = "events"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    edit: Mapped[int] = mapped_column(ForeignKey("edits.id"), index=True)
    state: Mapped[str] = mapped_column(String(16))
    author: Mapped[str] = mapped_column(Text)
    time: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    reason: Mapped[str | None] = mapped_column(Text)


class CombinationRow(Table):
    """The delta of several edits together, by what it was made from."""

    __tablename__ = "combinations"

    key: Mapped[str] = mapped_column(DIGEST, primary_key=True)
    delta: Mapped[str] = mapped_column(ForeignKey("deltas.digest"))
