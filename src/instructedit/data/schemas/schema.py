"""What a record schema is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from instructedit.data.rows import Row
from instructedit.records import EditRecord


@dataclass(frozen=True)
class Schema:
    """A published record schema and its reader.

    Attributes:
        name: as task files and messages call it.
        required_fields: the fields that identify a record of this schema; alternatives where there are several.
        read: turns the rows of one file into edit records; rows come as a whole, as some schemas refer to others.
    """

    name: str
    required_fields: tuple[frozenset[str], ...]
    read: Callable[[Sequence[Row]], Iterator[EditRecord]]

    def matches(self, row: Row) -> bool:
        """Return whether a record has the required fields."""
        return any(fields <= row.fields.keys() for fields in self.required_fields)
