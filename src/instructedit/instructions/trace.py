"""Everything that an optimisation did, line by line, so that it can be read, and gone on with after any end."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from instructedit.errors import DataError


class Trace:
    """A JSON Lines file that is only ever added to; a line that was cut off by a kill is dropped.

    Args:
        path: of the file; it may exist.
        settings: what the optimisation depends on. A trace of other settings is not gone on with.

    Raises:
        DataError: the file is of other settings, or a line in it is damaged.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self.events: list[dict[str, Any]] = []
        if path.is_file():
            self._read()
        if not self.events:
            self.add("start", settings=settings)
        elif (kept := self.events[0].get("settings", {})) != settings:
            differ = sorted(key for key in kept.keys() | settings.keys() if kept.get(key) != settings.get(key))
            raise DataError(
                f"is the trace of another optimisation ({', '.join(differ)} differ); give another --out, or delete it",
                file=path,
            )

    def _read(self) -> None:
        text = self.path.read_text(encoding="utf-8")
        *lines, cut_off = text.split("\n")
        for number, line in enumerate(lines, 1):
            try:
                self.events.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise DataError(f"line {number} is not JSON ({error.msg})", file=self.path) from None
        first = self.events[0] if self.events else None
        if text and not (isinstance(first, dict) and first.get("event") == "start"):
            raise DataError("is not the trace of an optimisation; give another --out", file=self.path)
        if cut_off:
            os.truncate(self.path, len(text.removesuffix(cut_off).encode()))

    def add(self, event: str, **content: Any) -> None:
        """Keep an event, at once."""
        entry = {"event": event, **content}
        self.events.append(entry)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    def of(self, event: str) -> Iterator[dict[str, Any]]:
        """The events of one kind, in order."""
        return (entry for entry in self.events if entry["event"] == event)
