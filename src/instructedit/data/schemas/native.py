"""The schema of this project: one :class:`EditRecord` a line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import ValidationError

from instructedit.data.rows import Row
from instructedit.data.schemas.schema import Schema
from instructedit.errors import location_text, shorten
from instructedit.records import EditRecord


def _read(rows: Sequence[Row]) -> Iterator[EditRecord]:
    for row in rows:
        try:
            yield EditRecord.model_validate(row.fields)
        except ValidationError as error:
            first = error.errors()[0]
            raise row.error(location_text(first["loc"]), shorten(first["msg"])) from None


INSTRUCTEDIT = Schema("instructedit", (frozenset({"record_id", "request"}),), _read)
