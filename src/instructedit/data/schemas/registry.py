"""The record schemas that are known, and how a record's schema is recognised: by its fields, never by its file name."""

from __future__ import annotations

from instructedit.data.rows import Row
from instructedit.data.schemas.convsent import CONVSENT
from instructedit.data.schemas.counterfact import COUNTERFACT_EASYEDIT, COUNTERFACT_ROME
from instructedit.data.schemas.knowedit import KNOWEDIT
from instructedit.data.schemas.native import INSTRUCTEDIT
from instructedit.data.schemas.schema import Schema
from instructedit.data.schemas.zsre import ZSRE_MEND
from instructedit.errors import DataError, shorten

#: The first schema whose required fields are all present is taken; one with more fields stands before a laxer one.
SCHEMAS: tuple[Schema, ...] = (
    INSTRUCTEDIT,
    COUNTERFACT_ROME,
    COUNTERFACT_EASYEDIT,
    CONVSENT,
    ZSRE_MEND,
    KNOWEDIT,
)


def recognise(row: Row) -> Schema:
    """Return the schema of a record.

    Raises:
        DataError: no schema fits; the known ones are listed with their required fields. A record that lacks only
            one required field is told which.
    """
    for schema in SCHEMAS:
        if schema.matches(row):
            return schema
    present = row.fields.keys()
    alternatives = [(schema.name, fields) for schema in SCHEMAS for fields in schema.required_fields]
    for name, fields in alternatives:
        missing = fields - present
        if len(fields) > 2 and len(missing) == 1:
            raise row.error(next(iter(missing)), f"missing; the other fields are those of a {name} record")
    known = "\n".join(f"  {name}: {', '.join(sorted(fields))}" for name, fields in alternatives)
    shown = shorten(", ".join(sorted(present))) or "(none)"
    raise DataError(
        f"unknown schema with the fields {shown}. Known schemas, by their required fields:\n{known}\nA task's YAML can "
        "name the columns of other files (`columns`, see docs/tasks.md)",
        file=row.file,
        record=row.index,
    )
