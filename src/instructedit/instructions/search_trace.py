"""The trace of a search: everything that it did, line by line, so that it can be read, and resumed after a kill."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from instructedit.endpoints import secrets
from instructedit.errors import DataError
from instructedit.instructions.trial import METRICS
from instructedit.storage.reading import parse_json, read_bytes
from instructedit.storage.writing import append_line, check_writable, locked

#: The start of the first line.
_START = '{"event": "start"'
#: The fields of each kind of event that are read again, and their types.
_FIELDS: dict[str, dict[str, tuple[type, ...]]] = {
    "start": {"settings": (dict,)},
    "candidate": {"text": (str,), "proposer": (str,), "parent": (str, type(None)), "round": (int,)},
    "score": {"text": (str,), "start": (int,), "stop": (int,), "values": (dict,)},
    "proposed": {"round": (int,)},
    "round": {"number": (int,), "seconds": (int, float)},
}


class SearchTrace:
    """A JSON Lines file that is only appended to; a last line that a kill cut off is dropped.

    No other process can open the same trace until this one is closed or its process has ended. Keys and passwords
    (:mod:`instructedit.endpoints.secrets`) are not written to it.

    Args:
        path: path of the file; it may exist.
        settings: what the search depends on. A trace with other settings is not resumed.

    Attributes:
        path: path of the file.
        events: all events so far.

    Raises:
        DataError: the file cannot be written, has other settings or is open in another process, or a line in it is
            damaged.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self.events: list[dict[str, Any]] = []
        self._lock = ExitStack()
        settings = _redacted_settings(settings)
        check_writable(path)
        if not path.exists():
            _make(path)
        with ExitStack() as stack:
            stack.enter_context(locked(path))
            self._read()
            if not self.events:
                self.add("start", settings=settings)
            elif (earlier := _redacted_settings(self.events[0]["settings"])) != settings:
                keys = earlier.keys() | settings.keys()
                differ = sorted(key for key in keys if earlier.get(key) != settings.get(key))
                raise DataError(
                    f"is the trace of another search ({', '.join(differ)} differ); give another --out, or delete it",
                    file=path,
                )
            self._lock = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Release the file for other processes."""
        self._lock.close()

    def _read(self) -> None:
        content = read_bytes(self.path)
        end = content.rfind(b"\n") + 1
        cut_off = content[end:]
        if not end:
            # Killed while the very first line was written: there is nothing to resume, and nothing to lose.
            start = _START.encode()
            if not (cut_off.startswith(start) or start.startswith(cut_off)):
                raise self._not_a_trace()
        for number, line in enumerate(content[:end].split(b"\n")[:-1], 1):
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                problem = f"line {number} is not UTF-8 text (byte {error.start}); the trace is damaged"
                raise DataError(problem, file=self.path) from None
            event = self._parsed(text, number)
            if number == 1 and not (isinstance(event, dict) and event.get("event") == "start"):
                raise self._not_a_trace()
            self._check(event, number)
            self.events.append(event)
        if cut_off:
            os.truncate(self.path, end)

    def _not_a_trace(self) -> DataError:
        return DataError("is not the trace of a template search; give another --out", file=self.path)

    def _parsed(self, line: str, number: int) -> Any:
        # Rejected texts are kept as they came, with lone surrogates too.
        return parse_json(line, file=self.path, place=f"line {number}", lone_surrogates=True)

    def _check(self, event: Any, number: int) -> None:
        """Check that an event has the fields that are read.

        Raises:
            DataError: it lacks one.
        """
        if not isinstance(event, dict) or not isinstance(event.get("event"), str):
            raise DataError(f"line {number} is not an event of a trace; the file is damaged", file=self.path)
        fields = _FIELDS.get(event["event"], {})
        wrong = [
            name
            for name, kinds in fields.items()
            if name not in event or not isinstance(event[name], kinds) or isinstance(event[name], bool)
        ]
        if event["event"] == "candidate":
            wrong += sorted(event.keys() - fields.keys() - {"event"})
        if event["event"] == "score" and not wrong and not _are_scores(event):
            wrong = ["values"]
        if wrong:
            raise DataError(
                f"line {number} is damaged: {', '.join(wrong)} of {event['event']} missing or wrong", file=self.path
            )

    def add(self, event: str, **content: Any) -> None:
        """Append an event to the file at once.

        Raises:
            DataError: it cannot be written.
        """
        entry = secrets.redacted_json({"event": event, **content})
        append_line(self.path, json.dumps(entry))
        self.events.append(entry)

    def of(self, event: str) -> Iterator[dict[str, Any]]:
        """Yield the events of one kind, in order."""
        return (entry for entry in self.events if entry["event"] == event)


def _redacted_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings as they are written: without secrets, and addresses with host and path only."""
    redacted: dict[str, Any] = secrets.redacted_json(
        {
            key: secrets.address(value)
            if isinstance(value, str) and value.startswith(("http://", "https://"))
            else value
            for key, value in settings.items()
        }
    )
    return redacted


def _make(path: Path) -> None:
    try:
        path.touch()
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror}", file=path) from None


def _are_scores(event: dict[str, Any]) -> bool:
    """Return whether every metric has a number or null for every edit from ``start`` to ``stop``."""
    values, count = event["values"], event["stop"] - event["start"]
    return (
        event["start"] >= 0
        and values.keys() == set(METRICS)
        and all(isinstance(row, list) and len(row) == count for row in values.values())
        and all(
            v is None or (isinstance(v, (int, float)) and not isinstance(v, bool)) for r in values.values() for v in r
        )
    )
