"""Everything that an optimisation did, line by line, so that it can be read, and gone on with after any end."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from instructedit.errors import DataError
from instructedit.instructions import secrets
from instructedit.instructions.trial import METRICS
from instructedit.storage.reading import parse_json, read_bytes
from instructedit.storage.writing import append_line, check_writable, locked

#: What the first line begins with.
_START = '{"event": "start"'
#: The fields of each kind of event that are read again, and what they hold.
_FIELDS: dict[str, dict[str, tuple[type, ...]]] = {
    "start": {"settings": (dict,)},
    "candidate": {"text": (str,), "proposer": (str,), "parent": (str, type(None)), "round": (int,)},
    "score": {"text": (str,), "start": (int,), "stop": (int,), "values": (dict,)},
    "proposed": {"round": (int,)},
    "round": {"number": (int,), "seconds": (int, float)},
}


class Trace:
    """A JSON Lines file that is only ever added to; a line that was cut off by a kill is dropped.

    No other process can open the same trace until this one is closed or its process has ended. Keys and passwords
    (:mod:`instructedit.instructions.secrets`) are left out of it.

    Args:
        path: of the file; it may exist.
        settings: what the optimisation depends on. A trace of other settings is not gone on with.

    Raises:
        DataError: the file cannot be written, is of other settings or open in another process, or a line in it is
            damaged.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self.events: list[dict[str, Any]] = []
        self._held = ExitStack()
        settings = _shown(settings)
        check_writable(path)
        if not path.exists():
            _make(path)
        with ExitStack() as held:
            held.enter_context(locked(path))
            self._read()
            if not self.events:
                self.add("start", settings=settings)
            elif (kept := _shown(self.events[0]["settings"])) != settings:
                differ = sorted(key for key in kept.keys() | settings.keys() if kept.get(key) != settings.get(key))
                raise DataError(
                    f"is the trace of another optimisation ({', '.join(differ)} differ); give another --out, or "
                    "delete it",
                    file=path,
                )
            self._held = held.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes have the file."""
        self._held.close()

    def _read(self) -> None:
        content = read_bytes(self.path)
        whole = content.rfind(b"\n") + 1
        cut_off = content[whole:]
        if not whole:
            # Killed while the very first line was written: there is nothing to go on with, and nothing to lose.
            start = _START.encode()
            if not (cut_off.startswith(start) or start.startswith(cut_off)):
                raise self._foreign()
        for number, line in enumerate(content[:whole].split(b"\n")[:-1], 1):
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                problem = f"line {number} is not UTF-8 text (byte {error.start}); the trace is damaged"
                raise DataError(problem, file=self.path) from None
            event = self._parsed(text, number)
            if number == 1 and not (isinstance(event, dict) and event.get("event") == "start"):
                raise self._foreign()
            self._check(event, number)
            self.events.append(event)
        if cut_off:
            os.truncate(self.path, whole)

    def _foreign(self) -> DataError:
        return DataError("is not the trace of an optimisation; give another --out", file=self.path)

    def _parsed(self, line: str, number: int) -> Any:
        # Texts that were rejected are kept as they came, with half characters, too.
        return parse_json(line, file=self.path, place=f"line {number}", lone_surrogates=True)

    def _check(self, event: Any, number: int) -> None:
        """That an event has what is read of it.

        Raises:
            DataError: it has not.
        """
        if not isinstance(event, dict) or not isinstance(event.get("event"), str):
            raise DataError(f"line {number} is no event of a trace; the file is damaged", file=self.path)
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
        """Keep an event, at once.

        Raises:
            DataError: it cannot be written.
        """
        entry = secrets.cleaned({"event": event, **content})
        append_line(self.path, json.dumps(entry))
        self.events.append(entry)

    def of(self, event: str) -> Iterator[dict[str, Any]]:
        """The events of one kind, in order."""
        return (entry for entry in self.events if entry["event"] == event)


def _shown(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as they are written: addresses without what stands beside host and path."""
    found: dict[str, Any] = secrets.cleaned(
        {
            key: secrets.address(value)
            if isinstance(value, str) and value.startswith(("http://", "https://"))
            else value
            for key, value in settings.items()
        }
    )
    return found


def _make(path: Path) -> None:
    try:
        path.touch()
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror}", file=path) from None


def _are_scores(event: dict[str, Any]) -> bool:
    """Whether every metric has a number, or nothing, for every edit from ``start`` to ``stop``."""
    values, count = event["values"], event["stop"] - event["start"]
    return (
        event["start"] >= 0
        and values.keys() == set(METRICS)
        and all(isinstance(row, list) and len(row) == count for row in values.values())
        and all(
            v is None or (isinstance(v, (int, float)) and not isinstance(v, bool)) for r in values.values() for v in r
        )
    )
