"""Every error that InstructEdit raises on purpose.

    InstructEditError           root: catch this to catch them all
    ├── DataError               a file, record or field of edit data is wrong or missing
    ├── RecipeError             a recipe has mistakes; all of them are listed at once
    ├── ModelError              a base model cannot be loaded, or its structure is not supported
    ├── DeltaError              a delta does not belong to this base model, or its file is damaged
    ├── EditorError             an editor cannot edit: no gradient, NaN, wrong shapes, not trained
    └── CheckpointError         a run cannot go on: its checkpoint is damaged, or is another recipe's

Each message says what was wrong, where, and what to do about it. The command line prints the message alone
and exits with code 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line imports this room first, and --help is to be quick
    from pydantic import ValidationError


class InstructEditError(Exception):
    """Root of the tree."""

    def __str__(self) -> str:
        """The message; halves of surrogate pairs in a quoted value are escaped, so that it can always be printed."""
        return super().__str__().encode("utf-8", "backslashreplace").decode()


class DataError(InstructEditError):
    """A data file, record or field is wrong.

    Args:
        problem: what is wrong and what to do.
        file: the file it stands in, if there is one.
        record: index of the record in that file, counted from 0.
        field: the field's name inside the record.
    """

    def __init__(
        self, problem: str, *, file: object = None, record: int | None = None, field: str | None = None
    ) -> None:
        where = [
            f"{name} {value}"
            for name, value in (("file", file), ("record", record), ("field", field))
            if value is not None
        ]
        super().__init__(f"{', '.join(where)}: {problem}" if where else problem)


class RecipeError(InstructEditError):
    """A recipe has one or more mistakes, all listed."""

    def __init__(self, source: object, mistakes: Sequence[str]) -> None:
        self.mistakes = tuple(mistakes)
        count = "1 mistake" if len(self.mistakes) == 1 else f"{len(self.mistakes)} mistakes"
        super().__init__(f"{source}: {count}\n" + "\n".join(f"  - {mistake}" for mistake in self.mistakes))


class ModelError(InstructEditError):
    """A base model cannot be loaded or edited."""


class DeltaError(InstructEditError):
    """A delta cannot be read, combined or attached."""


class EditorError(InstructEditError):
    """An editor cannot produce an edit."""


class CheckpointError(InstructEditError):
    """A run's checkpoint cannot be gone on from."""


_NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory is used up: Python's own, or a library's by its words."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, (RuntimeError, OSError)) and any(words in str(error).lower() for words in _NO_MEMORY)


#: Of a place or of what pydantic says about it, that many characters are repeated: either may hold a user's value.
_LONGEST_PART = 300


def mistakes_of(error: ValidationError) -> list[str]:
    """Every mistake that pydantic found, each behind its place."""
    return [f"{place_of(mistake['loc'])}: {shorten(mistake['msg'])}" for mistake in error.errors(include_input=False)]


def place_of(location: Sequence[int | str]) -> str:
    """``a.0.b``, with keys of any length cut."""
    return shorten(".".join(shorten(str(part)) for part in location))


def shorten(text: str) -> str:
    """A text for a message, at most as long as is read."""
    return text if len(text) <= _LONGEST_PART else f"{text[:_LONGEST_PART]}…"
