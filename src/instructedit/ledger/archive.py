"""Edits in a folder, to take them to another ledger: requests and history as JSON Lines, deltas as files.

edits.jsonl                    an edit a line, with its events
deltas/<digest>.safetensors    what they change
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from instructedit.deltas.saving import load_delta, pack_delta
from instructedit.errors import LedgerError
from instructedit.ledger.entry import Entry, Event
from instructedit.ledger.ledger import Ledger
from instructedit.ledger.tables import State
from instructedit.records import EditRequest
from instructedit.storage.reading import as_mapping, parse_json, read_text
from instructedit.storage.writing import make_folder, write_atomically

EDITS, DELTAS = "edits.jsonl", "deltas"


def write_archive(ledger: Ledger, entries: Sequence[Entry], folder: Path) -> None:
    """Write edits into a folder, which is created.

    Raises:
        LedgerError: the folder is not empty.
        DataError: it cannot be written.
    """
    if folder.exists() and any(folder.iterdir()):
        raise LedgerError(f"folder {folder}: is not empty; choose another one")
    make_folder(folder / DELTAS)
    lines = []
    for entry in entries:
        write_atomically(folder / DELTAS / f"{entry.delta}.safetensors", pack_delta(ledger.delta(entry)))
        events = [event.as_dict() for event in ledger.events(entry.id)]
        lines.append(json.dumps({**entry.as_dict(), "events": events}, ensure_ascii=False))
    write_atomically(folder / EDITS, "".join(line + "\n" for line in lines).encode())


def read_archive(ledger: Ledger, folder: Path) -> tuple[list[Entry], int]:
    """Add the edits of a folder to a ledger, with numbers of that ledger; those that it has already are left out.

    Returns:
        The added edits, and how many were left out.

    Raises:
        DataError: the folder is not an archive, or cannot be read.
        LedgerError: a line is damaged; nothing was added.
        DeltaError: a delta is damaged, likewise.
    """
    file = folder / EDITS
    read = []
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if line.strip():
            place = f"line {number}"
            row = as_mapping(parse_json(line, file=file, place=place), file)
            entry, events = _parse(row, f"file {file}, {place}")
            read.append((entry, load_delta(folder / DELTAS / f"{entry.delta}.safetensors"), events))
    added = [new for part in read if (new := ledger.import_edit(*part)) is not None]
    return added, len(read) - len(added)


def _parse(row: dict[str, Any], place: str) -> tuple[Entry, list[Event]]:
    """Return the edit of a line, and its events.

    Raises:
        LedgerError: a field is missing or wrong.
    """
    try:
        events = [_event(event) for event in row.pop("events")]
        values = {
            **row,
            "request": EditRequest.model_validate(row["request"]),
            "state": State(row["state"]),
            "created": datetime.fromisoformat(row["created"]),
        }
        if not all(re.fullmatch(f"[0-9a-f]{{{length}}}", row[name]) for name, length in (("uid", 32), ("delta", 64))):
            raise ValueError("a uid has 32, a digest 64 hexadecimal digits")
        return Entry(**values), events
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise LedgerError(f"{place}: is not an edit of an archive: {str(error).splitlines()[0]}") from None


def _event(row: dict[str, Any]) -> Event:
    time = datetime.fromisoformat(row["time"])
    return Event(row["id"], row["edit"], State(row["state"]), str(row["author"]), time, row["reason"])
