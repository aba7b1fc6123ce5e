"""What two edits differ in."""

from __future__ import annotations

from typing import Any

from instructedit.deltas.delta import Delta
from instructedit.ledger.ledger import Ledger

_FIELDS = ("instruction", "editor", "base", "state", "author")


def compare(ledger: Ledger, first: int, second: int) -> dict[str, Any]:
    """Return the fields in which two edits differ, the norms of their changes, and the cosine of these.

    Returns:
        ``fields``: pairs of values by name; ``norms``: a pair; ``cosine``: None for different base models.

    Raises:
        LedgerError: there is no such edit.
    """
    entries = ledger.edit(first), ledger.edit(second)
    values = [
        {**entry.request.model_dump(), **{name: getattr(entry, name) for name in _FIELDS}, "delta": entry.delta[:12]}
        for entry in entries
    ]
    deltas = [ledger.delta(entry) for entry in entries]
    return {
        "fields": {name: [one[name] for one in values] for name in values[0] if values[0][name] != values[1][name]},
        "norms": [delta.norm() for delta in deltas],
        "cosine": cosine(*deltas) if entries[0].base == entries[1].base else None,
    }


def cosine(first: Delta, second: Delta) -> float:
    """Return the cosine of two changes of one base model, over all matrices; 0 where either changes nothing.

    By |A + B|^2 = |A|^2 + 2 <A, B> + |B|^2, so that no change is formed as a whole.
    """
    norms = first.norm(), second.norm()
    if not all(norms):
        return 0.0
    inner = ((first + second).norm() ** 2 - norms[0] ** 2 - norms[1] ** 2) / 2
    return inner / (norms[0] * norms[1])
