"""The README's tables from a result of benchmarks/quality.py.

python benchmarks/tables.py docs/results/bundled.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def cell(row: Row, metric: str) -> str:
    """Mean and 95% interval in percent."""
    value = row["metrics"].get(metric)
    if value is None:
        return "–"
    mean, low, high = (f"{100 * value[key]:.1f}" for key in ("mean", "low", "high"))
    return f"{mean} ({low}–{high})"


def of(rows: list[Row], **wanted: str) -> list[Row]:
    """The rows with these fields."""
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def table(heads: list[str], lines: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, ["---"] * len(heads), *lines])


def main_table(rows: list[Row]) -> str:
    """Reliability, Generalization and Locality by task."""
    found = [
        row for row in of(rows, protocol="plain", instruction="unseen") if row["task"] not in ("this-fact", "rename")
    ]
    lines = [
        [f"`{row['task']}`, {row['file']}"]
        + [cell(row, metric) for metric in ("reliability", "generalization", "locality", "reliability_before")]
        for row in found
    ]
    return table(["task", "Reliability", "Generalization", "Locality", "before the edit"], lines)


def scope_table(rows: list[Row]) -> str:
    """Kept and changed under the own and under the swapped instruction."""
    lines = []
    for wording in ("", ", test wordings"):
        for task, metric in (("this-fact", "kept"), ("rename", "changed")):
            cells = []
            for control in ("unseen", "swapped-scope"):
                chosen = of(rows, task=task, protocol="plain", instruction=control + wording)
                cells.append(cell(chosen[0], metric) if chosen else "–")
            lines.append([f"`{task}`: neighbours {metric}{wording and ', unseen wording alone'}", *cells])
    return table(["", "own instruction", "swapped instruction"], lines)


def generation_table(rows: list[Row]) -> str:
    """Free generation, exact match."""
    lines = [
        [f"`{row['task']}`"] + [cell(row, metric) for metric in ("reliability", "generalization", "locality")]
        for row in of(rows, protocol="generation")
    ]
    return table(["free generation, exact match", "Reliability", "Generalization", "Locality"], lines)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path)
    rows = json.loads(parser.parse_args().result.read_text(encoding="utf-8"))["rows"]
    for make in (main_table, scope_table, generation_table):
        print(make(rows), end="\n\n")


if __name__ == "__main__":
    main()
