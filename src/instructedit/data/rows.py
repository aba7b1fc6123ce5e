"""Raw records of JSON and JSON Lines files, before a schema turns them into edit records."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructedit.errors import DataError
from instructedit.storage.reading import parse_json, read_text


@dataclass(frozen=True)
class Row:
    """One raw record, with getters whose errors name file, record and field.

    Attributes:
        fields: the record as it stands in the file.
        file: the file's path.
        index: the record's position in the file, counted from 0.
    """

    fields: dict[str, Any]
    file: Path
    index: int

    def error(self, field: str, problem: str) -> DataError:
        """Return an error about a field of this record."""
        return DataError(problem, file=self.file, record=self.index, field=field or None)

    def text(self, field: str) -> str:
        """Return a string that is not blank.

        Raises:
            DataError: the field is missing, blank or not a text.
        """
        value = self.optional_text(field)
        if value is None:
            raise self.error(field, "missing or blank; expected a non-empty string")
        return value

    def optional_text(self, field: str) -> str | None:
        """Return a string or number as a string, or None where it is missing or blank.

        Raises:
            DataError: the field is neither.
        """
        value = self.fields.get(field)
        if value is None or value == "":
            return None
        if is_number(value):
            return str(value)
        if not isinstance(value, str):
            raise self.error(field, f"expected a string, found {type(value).__name__}")
        return value if value.strip() else None

    def texts(self, field: str) -> tuple[str, ...]:
        """Return the strings of a string or a list of strings, without the blank ones.

        Raises:
            DataError: the field is neither.
        """
        value = self.fields.get(field) or ()
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, (list, tuple)) or not all(isinstance(text, str) for text in values):
            raise self.error(field, "expected a string or a list of strings")
        return tuple(text for text in values if text.strip())

    def mapping(self, field: str) -> dict[str, Any]:
        """Return a JSON object, empty where the field is missing.

        Raises:
            DataError: the field is something else.
        """
        value = self.fields.get(field) or {}
        if not isinstance(value, dict):
            raise self.error(field, f"expected an object, found {type(value).__name__}")
        return value


def is_number(value: object) -> bool:
    """Return whether a value is a number that can be written as text: no truth value, no NaN, no infinity."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def read_rows(path: Path) -> list[Row]:
    """Return the raw records of a JSON array or JSON Lines file.

    Raises:
        DataError: the file is missing, not UTF-8, empty, truncated or not a list of objects.
    """
    content = read_text(path)
    if not content.strip():
        raise DataError("is empty", file=path)
    if content.lstrip().startswith("["):
        values = parse_json(content, file=path)
    else:
        values = [
            parse_json(line, file=path, place=f"line {number}")
            for number, line in enumerate(content.split("\n"), start=1)
            if line.strip()
        ]
    for index, value in enumerate(values):
        if not isinstance(value, dict):
            raise DataError(f"expected an object, found {type(value).__name__}", file=path, record=index)
    if not values:
        raise DataError("contains no records", file=path)
    return [Row(value, path, index) for index, value in enumerate(values)]
