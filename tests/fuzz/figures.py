"""Counts by class, kept inside pytest's reports so that they reach the end of a run from every process."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from fuzz.outcomes import ALLOWED, Outcome, Verdict, judge

#: Inputs in total; `make fuzz` sets it.
INPUTS = int(os.environ.get("INSTRUCTEDIT_FUZZ", "300"))
#: Whether this is `make fuzz`, whose failures are kept as files.
FULL = "INSTRUCTEDIT_FUZZ" in os.environ
BUILD = Path(__file__).parents[2] / "build"
PROPERTY = "fuzz"
COLUMNS = ("inputs", *Outcome)


class Figures:
    """What came of the inputs of one test.

    Args:
        name: of the class.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.counts: Counter[str] = Counter()
        self.failures: dict[str, tuple[int, Verdict, str]] = {}

    def add(self, verdict: Verdict, example: str, content: bytes | None = None) -> None:
        """Count a verdict; the first input of each kind of failure is kept by `make fuzz`."""
        self.counts["inputs"] += 1
        self.counts[verdict.outcome] += 1
        if verdict.outcome in ALLOWED:
            return
        count, first, place = self.failures.get(verdict.signature, (0, verdict, example))
        if count == 0 and content is not None and FULL:
            slug = re.sub(r"[^a-z0-9]+", "-", verdict.signature.lower()).strip("-")[:80]
            digest = hashlib.sha256(content).hexdigest()[:6]
            file = BUILD / "fuzz" / self.name / f"{slug}.{digest}.{example.rpartition('/')[2]}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
            place = f"{example} ({file.relative_to(BUILD.parent)})"
        self.failures[verdict.signature] = (count + 1, first, place)

    def said(self) -> list[str]:
        """A line for each kind of failure."""
        return [
            f"{self.name}: {count} × {signature}: {verdict.what[:160]!r}; first input {place}"
            for signature, (count, verdict, place) in sorted(self.failures.items())
        ]

    def report(self, record_property: Callable[[str, object], None]) -> None:
        """Hand the counts over to the table at the end."""
        record_property(PROPERTY, json.dumps([self.name, dict(self.counts), self.said()]))


def try_file(name: str, content: bytes, use: Callable[[Path], object], *, seconds: float = 20.0) -> Verdict:
    """Judge what ``use`` makes of a file, in a working folder of its own."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "in").mkdir()
        path = folder / "in" / name
        path.write_bytes(content)
        return judge(lambda: use(path), folder, seconds=seconds)


def total(properties: Iterable[tuple[str, Any]]) -> tuple[dict[str, Counter[str]], list[str]]:
    """Counts by class and all lines about failures, out of the reports' properties."""
    counts: dict[str, Counter[str]] = {}
    said: list[str] = []
    for key, text in properties:
        if key == PROPERTY:
            name, found, lines = json.loads(text)
            counts.setdefault(name, Counter()).update(found)
            said += lines
    return counts, said


def table(counts: dict[str, Counter[str]]) -> list[str]:
    """The counts as lines of text, with their sum."""
    rows = [*sorted(counts.items()), ("all", sum(counts.values(), Counter()))]
    widths = [max(len(column), 6) for column in COLUMNS]
    lines = [f"{'class':12}" + "".join(f"{column:>{width + 2}}" for column, width in zip(COLUMNS, widths, strict=True))]
    for name, row in rows:
        cells = (f"{row[column]:>{width + 2}}" for column, width in zip(COLUMNS, widths, strict=True))
        lines.append(f"{name:12}" + "".join(cells))
    return lines
