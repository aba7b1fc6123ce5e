"""Read result files and render Markdown tables from them; the tables themselves are in `tables.py`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instructedit.artifacts import log_entries

RESULTS = Path(__file__).parents[1] / "docs" / "results"

Row = dict[str, Any]
#: Fields that a row of a result must have.
Where = dict[str, str]
#: A column of a grid: head, fields, metric.
Column = tuple[str, Where, str]

R, G, L, P = "reliability", "generalization", "locality", "portability"
HEADS = {R: "Reliability", G: "Generalization", L: "Locality", P: "Portability", "following": "following"}


def read(name: str) -> Any:
    """Return a result by its name. Files of earlier versions call held-out templates wordings."""
    text = (RESULTS / f"{name}.json").read_text(encoding="utf-8")
    return json.loads(text.replace("test wordings", "test templates"))


def minutes(log: str) -> float:
    """Return the minutes of a training log's steps; its ``seconds`` start again after every resume."""
    total = last = 0.0
    for row in log_entries(log):
        if row["phase"] == "train":
            total, last = total + (last if row["seconds"] < last else 0.0), row["seconds"]
    return (total + last) / 60


def interval(value: dict[str, float] | None, scale: float = 100, digits: int = 1) -> str:
    """Return a mean and its 95% interval, in percent by default."""
    if value is None:
        return "–"
    mean, low, high = (f"{scale * value[key]:.{digits}f}" for key in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})" if low.startswith("-") else f"{mean} ({low}–{high})"


def cell(row: Row | None, metric: str) -> str:
    """Return a metric of a row: mean and 95% interval in percent."""
    return interval(None if row is None else row["metrics"].get(metric))


def find(rows: list[Row], **fields: str) -> Row | None:
    """Return the first row with these fields, or None."""
    return next((row for row in rows if all(row.get(key) == value for key, value in fields.items())), None)


def markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, ["---"] * len(heads), *lines])


def grid(rows: list[Row], corner: str, lines: Sequence[tuple[str, Where]], columns: Sequence[Column]) -> str:
    """Return a table whose cells are the rows that match both the line's and the column's fields."""
    body = [
        [label, *(cell(find(rows, **where, **column), metric) for _, column, metric in columns)]
        for label, where in lines
    ]
    return markdown([corner, *(head for head, _, _ in columns)], body)
