"""A ledger: edits are added, enabled, disabled and reverted; nothing that was added is ever changed or lost."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from getpass import getuser
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Self

from pydantic import ValidationError
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session as DatabaseSession

from instructedit.deltas.delta import Delta
from instructedit.deltas.saving import load_delta, pack_delta
from instructedit.errors import DeltaError, LedgerError
from instructedit.ledger.conflicts import Conflict, find_conflicts, refuse
from instructedit.ledger.database import Database
from instructedit.ledger.entry import Entry, Event, NewEdit
from instructedit.ledger.tables import CombinationRow, DeltaRow, EditRow, EventRow, State
from instructedit.records import EditRequest

#: What is done with a new edit that contradicts enabled ones: it is refused, they are disabled, or both are kept.
OnConflict = Literal["refuse", "replace", "keep"]


class Ledger:
    """The edits of a database.

    Args:
        where: see :class:`Database`.
        author: of what is written; default the name of the user who runs the program.
        create: see :class:`Database`.

    Raises:
        LedgerError: see :class:`Database`.
    """

    def __init__(self, where: str | Path, author: str | None = None, *, create: bool = True) -> None:
        self.database = Database(where, create=create)
        self.author = author or _user()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.database.close()

    def add(
        self,
        edits: Sequence[NewEdit],
        on_conflict: OnConflict = "refuse",
        conflicts: Mapping[int, Sequence[Conflict]] | None = None,
        state: State = State.ENABLED,
    ) -> list[Entry]:
        """Add edits, all or none.

        Args:
            edits: the new edits.
            on_conflict: what is done where one contradicts an enabled edit of the same base model.
            conflicts: what else contradicts the edit of an index, besides :func:`find_conflicts`.
            state: of the new edits.

        Raises:
            LedgerError: a conflict is to be refused, or the database cannot be written.
        """
        contents = [pack_delta(new.delta) for new in edits]
        with self.database.writing() as session:
            added = []
            for index, (new, content) in enumerate(zip(edits, contents, strict=True)):
                known = list((conflicts or {}).get(index, ()))
                if on_conflict != "keep":
                    self._settle(session, new, known, on_conflict)
                added.append(self._insert(session, new, content, state))
            return [_entry(row) for row in added]

    def edits(self, states: Collection[State] = tuple(State), base: str | None = None) -> list[Entry]:
        """Return the edits in these states, in the order in which they were added.

        Args:
            states: of the edits.
            base: fingerprint of their base model; None for all models.
        """
        query = select(EditRow).where(EditRow.state.in_([state.value for state in states])).order_by(EditRow.id)
        if base is not None:
            query = query.where(EditRow.base == base)
        with self.database.reading() as session:
            return [_entry(row) for row in session.scalars(query)]

    def edit(self, number: int) -> Entry:
        """Return an edit.

        Raises:
            LedgerError: there is no such edit.
        """
        with self.database.reading() as session:
            return _entry(_row(session, number))

    def delta(self, entry: Entry) -> Delta:
        """Return what an edit changes.

        Raises:
            LedgerError: it is damaged.
        """
        with self.database.reading() as session:
            return _load(session, entry.delta, f"edit {entry.id}")

    def set_state(self, numbers: Sequence[int], state: State, reason: str | None = None) -> list[Entry]:
        """Enable, disable or revert edits, all or none; those that are in that state already are left as they are.

        Raises:
            LedgerError: there is no such edit, or it was reverted.
        """
        with self.database.writing() as session:
            rows = [_row(session, number) for number in numbers]
            reverted = [row.id for row in rows if row.state == State.REVERTED.value != state.value]
            if reverted:
                raise LedgerError(
                    f"edit {reverted[0]} was reverted and stays so; `instructedit edits rebuild {reverted[0]}` makes "
                    "it again from its request"
                )
            for row in rows:
                if row.state != state.value:
                    self._move(session, row, state, reason)
            return [_entry(row) for row in rows]

    def events(self, number: int | None = None) -> list[Event]:
        """Return what happened to an edit, or to all."""
        query = select(EventRow).order_by(EventRow.id)
        if number is not None:
            query = query.where(EventRow.edit == number)
        with self.database.reading() as session:
            return [
                Event(row.id, row.edit, State(row.state), row.author, _utc(row.time), row.reason)
                for row in session.scalars(query)
            ]

    def combination(self, key: str) -> Delta | None:
        """Return the delta of several edits that was kept under this key, if there is one."""
        with self.database.reading() as session:
            row = session.get(CombinationRow, key)
            return None if row is None else _load(session, row.delta, "the combined edits")

    def keep_combination(self, key: str, delta: Delta) -> None:
        """Keep the delta of several edits in place of the last one kept, so that it need not be computed again."""
        content = pack_delta(delta)
        with self.database.writing() as session:
            _drop_combinations(session)
            session.add(CombinationRow(key=key, delta=_store(session, content)))

    def problems(self) -> list[str]:
        """Return what is wrong with the ledger: an empty list if every edit can be read and is what it was."""
        problems = self.database.integrity()
        with self.database.reading() as session:
            made_for: dict[str, tuple[EditRequest, ...]] = {}  # by digest; every delta is read once
            for digest in session.scalars(select(DeltaRow.digest)):
                try:
                    made_for[digest] = _load(session, digest, f"delta {digest[:12]}").metadata.requests
                except LedgerError as error:
                    problems.append(str(error))
            for row in session.scalars(select(EditRow)):
                problems += self._problems_of(session, row, made_for.get(row.delta))
        return problems

    def collect_garbage(self) -> tuple[int, int]:
        """Delete what can be computed again: deltas that are no edit's own.

        Returns:
            How many deltas were deleted, and their bytes.
        """
        with self.database.writing() as session:
            return _drop_combinations(session)

    def import_edit(self, entry: Entry, delta: Delta, events: Sequence[Event]) -> Entry | None:
        """Add an edit of another ledger with its history; None where it is here already."""
        content = pack_delta(delta)
        with self.database.writing() as session:
            if session.scalar(select(EditRow).where(EditRow.uid == entry.uid)) is not None:
                return None
            digest = _store(session, content)
            values: dict[str, Any] = {**vars(entry), "request": entry.request.model_dump(exclude_none=True)}
            del values["id"]
            row = EditRow(**{**values, "delta": digest, "state": entry.state.value})
            session.add(row)
            session.flush()
            for event in events:
                session.add(
                    EventRow(
                        edit=row.id,
                        state=event.state.value,
                        author=event.author,
                        time=event.time,
                        reason=event.reason,
                    )
                )
            session.flush()
            return _entry(row)

    def _settle(
        self, session: DatabaseSession, new: NewEdit, known: Sequence[Conflict], on_conflict: OnConflict
    ) -> None:
        """Refuse an edit that contradicts enabled ones, or disable them."""
        enabled = select(EditRow).where(EditRow.state == State.ENABLED.value, EditRow.base == new.delta.metadata.base)
        rows = {row.id: row for row in session.scalars(enabled.order_by(EditRow.id))}
        conflicts = {conflict.entry.id: conflict for conflict in known if conflict.entry.id in rows}
        for conflict in find_conflicts(new.request, new.delta.metadata.instruction, map(_entry, rows.values())):
            conflicts[conflict.entry.id] = conflict
        if on_conflict == "refuse":
            refuse(conflicts.values(), new)
        for number in conflicts:
            self._move(session, rows[number], State.DISABLED, f"replaced by {new.request.target!r}")

    def _insert(self, session: DatabaseSession, new: NewEdit, content: bytes, state: State) -> EditRow:
        about = new.delta.metadata
        row = EditRow(
            uid=uuid.uuid4().hex,
            request=new.request.model_dump(exclude_none=True),
            instruction=about.instruction,
            answer=new.answer,
            editor=new.editor,
            editor_digest=new.editor_digest,
            base=about.base,
            source=about.source,
            delta=_store(session, content),
            state=state.value,
            author=self.author,
            created=datetime.now(UTC),
            report=None if new.report is None else dict(new.report),
            health=None if new.health is None else dict(new.health),
            made_from=new.made_from,
        )
        session.add(row)
        session.flush()
        self._move(session, row, state, None)
        return row

    def _move(self, session: DatabaseSession, row: EditRow, state: State, reason: str | None) -> None:
        row.state = state.value
        session.add(EventRow(edit=row.id, state=state.value, author=self.author, time=datetime.now(UTC), reason=reason))
        session.flush()

    def _problems_of(
        self, session: DatabaseSession, row: EditRow, made_for: Collection[EditRequest] | None
    ) -> list[str]:
        """Return what is wrong with an edit, whose delta was made for these requests; None if it cannot be read."""
        problems = []
        last = session.scalar(select(EventRow).where(EventRow.edit == row.id).order_by(EventRow.id.desc()).limit(1))
        if last is None or last.state != row.state:
            problems.append(f"edit {row.id}: is {row.state}, but its last event is {last and last.state}")
        try:
            request = _entry(row).request
            if made_for is None:
                problems.append(
                    f"edit {row.id}: its delta {row.delta[:12]} is damaged or missing; rebuild it from its request"
                )
            elif request not in made_for:
                problems.append(f"edit {row.id}: its delta was made for another request")
        except LedgerError as error:
            problems.append(str(error))
        return problems


def _row(session: DatabaseSession, number: int) -> EditRow:
    row = session.get(EditRow, number)
    if row is None:
        raise LedgerError(f"there is no edit {number}; `instructedit edits list` shows all")
    return row


def _entry(row: EditRow) -> Entry:
    try:
        request = EditRequest.model_validate(row.request)
    except ValidationError as error:
        raise LedgerError(f"edit {row.id}: its request is damaged: {error.errors()[0]['msg']}") from None
    return Entry(
        id=row.id,
        uid=row.uid,
        request=request,
        instruction=row.instruction,
        answer=row.answer,
        editor=row.editor,
        editor_digest=row.editor_digest,
        base=row.base,
        source=row.source,
        delta=row.delta,
        state=State(row.state),
        author=row.author,
        created=_utc(row.created),
        report=row.report,
        health=row.health,
        made_from=row.made_from,
    )


def _utc(time: datetime) -> datetime:
    """Return a time with its zone, which SQLite does not keep."""
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def _store(session: DatabaseSession, content: bytes) -> str:
    """Store the file of a delta unless it is there; return its digest."""
    digest = hashlib.sha256(content).hexdigest()
    if session.get(DeltaRow, digest) is None:
        session.add(DeltaRow(digest=digest, content=content))
        session.flush()
    return digest


def _drop_combinations(session: DatabaseSession) -> tuple[int, int]:
    """Delete the deltas that are no edit's own; return how many there were, and their bytes."""
    session.execute(delete(CombinationRow))
    unused = DeltaRow.digest.not_in(select(EditRow.delta))
    sizes = list(session.scalars(select(func.length(DeltaRow.content)).where(unused)))
    session.execute(delete(DeltaRow).where(unused))
    return len(sizes), sum(sizes)


def _load(session: DatabaseSession, digest: str, what: str) -> Delta:
    """Return the delta with this digest.

    Raises:
        LedgerError: it is not there or damaged.
    """
    row = session.get(DeltaRow, digest)
    if row is None:
        raise LedgerError(f"{what}: its delta {digest[:12]} is not in the ledger")
    if hashlib.sha256(row.content).hexdigest() != digest:
        raise LedgerError(f"{what}: its delta {digest[:12]} is damaged; rebuild the edit from its request")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "delta.safetensors"
        path.write_bytes(row.content)
        try:
            return load_delta(path)
        except DeltaError as error:
            raise LedgerError(f"{what}: its delta cannot be read: {str(error).partition(': ')[2]}") from None


def _user() -> str:
    try:
        return getuser()
    except OSError:  # a user without a name, as in many containers
        return "unknown"
