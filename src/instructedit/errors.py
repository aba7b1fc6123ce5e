"""The exceptions that InstructEdit raises on purpose.

    InstructEditError           base class: catch it to catch all of them
    ├── DataError               a file, record or field of edit data is wrong or missing
    ├── RecipeError             a recipe has mistakes; the message lists all of them
    ├── ModelError              a base model cannot be loaded, or its architecture is not supported
    ├── DeltaError              a delta does not belong to this base model, or its file is damaged
    ├── EditorError             an editor cannot edit: no gradient, NaN, wrong shapes, not trained
    ├── ServerError             a server of language models cannot be reached, or refuses an edit
    ├── LedgerError             a ledger of edits cannot be opened, is damaged, or refuses an edit
    └── CheckpointError         a run cannot resume: its checkpoint is damaged or belongs to another recipe

Each message states what is wrong, where, and what to do. The command line prints the message without a traceback and
exits with code 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # every command imports this module, also for --help, and pydantic is slow to import
    from pydantic import ValidationError


class InstructEditError(Exception):
    """Base class of all errors of this package."""

    def __str__(self) -> str:
        """Return the message with lone surrogates escaped, so that any terminal or file can take it."""
        return super().__str__().encode("utf-8", "backslashreplace").decode()


class DataError(InstructEditError):
    """A data file, record or field is wrong or missing.

    Args:
        problem: what is wrong and what to do.
        file: the file that contains the problem, if any.
        record: index of the record in that file, counted from 0.
        field: name of the field in the record.
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
    """A recipe has one or more mistakes.

    Attributes:
        mistakes: one message for each mistake; the error's own message lists all of them.
    """

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


class LedgerError(InstructEditError):
    """A ledger of edits cannot be opened, is damaged, or refuses an edit."""


class ServerError(InstructEditError):
    """A server of language models cannot be reached, or refuses an edit."""


class CheckpointError(InstructEditError):
    """A run cannot resume from its checkpoint."""


_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception reports exhausted memory.

    Libraries raise plain ``RuntimeError`` or ``OSError`` for it, so those are recognised by their message.
    """
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, (RuntimeError, OSError)) and any(words in str(error).lower() for words in _OUT_OF_MEMORY)


#: Maximum length in characters of each part of a message that may contain user input.
_MAX_PART_LENGTH = 300


def validation_messages(error: ValidationError) -> list[str]:
    """Return one message for each mistake that pydantic reports, as ``location: problem``."""
    return [
        f"{location_text(mistake['loc'])}: {shorten(mistake['msg'])}" for mistake in error.errors(include_input=False)
    ]


def location_text(location: Sequence[int | str]) -> str:
    """Return a pydantic location as ``a.0.b``, with long keys shortened."""
    return shorten(".".join(shorten(str(part)) for part in location))


def shorten(text: str) -> str:
    """Return a text for a message, truncated after 300 characters."""
    return text if len(text) <= _MAX_PART_LENGTH else f"{text[:_MAX_PART_LENGTH]}…"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the known name that is nearest to a wrong one; empty if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
