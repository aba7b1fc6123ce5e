"""Reading data files: each published record schema becomes a list of :class:`EditRecord`.

JSON arrays and JSON Lines are both read. Every error names the file, the record and the field.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from instructedit.data.rows import Row, read_rows
from instructedit.data.schemas.columns import Columns
from instructedit.data.schemas.registry import recognise
from instructedit.data.schemas.schema import Schema
from instructedit.errors import DataError
from instructedit.records import EditRecord


def read_records(
    path: str | Path, schema: str | None = None, *, columns: Columns | None = None, skip_incomplete: bool = False
) -> list[EditRecord]:
    """Return all records of a data file, in its order.

    Args:
        path: a JSON or JSON Lines file in any schema of :data:`~instructedit.data.schemas.registry.SCHEMAS`.
        schema: insist on the schema of this name instead of accepting any.
        columns: read flat records with these columns instead.
        skip_incomplete: leave out records that lack a field instead of raising. Published files hold a few;
            for training that is no loss, for an evaluation it has to be a decision.

    Raises:
        DataError: as :func:`~instructedit.data.rows.read_rows` and
            :func:`~instructedit.data.schemas.registry.recognise`, or a record lacks a field.
    """
    rows = read_rows(Path(path))
    if columns is not None:
        file_schema = columns.schema_of_file()
    else:
        file_schema = _schema_of(rows, skip_incomplete)
        if schema is not None and file_schema.name != schema:
            raise DataError(f"is a {file_schema.name} file, expected {schema}", file=path)
        for row in rows:
            if not skip_incomplete and recognise(row).name != file_schema.name:
                raise row.error("", f"is a {recognise(row).name} record in a {file_schema.name} file")
    if skip_incomplete:
        rows = [row for row in rows if _is_complete(row, file_schema)]
    return list(file_schema.read(rows))


def _schema_of(rows: Sequence[Row], skip_incomplete: bool) -> Schema:
    """Return the schema of the first record; with ``skip_incomplete``, of the first that has one."""
    for row in rows if skip_incomplete else ():
        try:
            return recognise(row)
        except DataError:
            continue
    return recognise(rows[0])


def _is_complete(row: Row, schema: Schema) -> bool:
    try:
        return bool(list(schema.read([row])))
    except DataError:
        return False
