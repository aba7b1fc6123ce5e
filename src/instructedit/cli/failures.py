"""Error messages and exit codes of the commands.

2     wrong input, or a problem of the machine; the message states what to do
70    a bug of this program (EX_SOFTWARE of sysexits.h); INSTRUCTEDIT_DEBUG=1 shows the traceback
130   interrupted by the user
141   the reader of the output has closed it (``| head``); no message
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path

import typer

from instructedit.errors import InstructEditError, is_out_of_memory

INTERRUPTED = "interrupted; finished work is kept, and running the same command again resumes it"
_PACKAGE = Path(__file__).parents[1]
#: Base class of click's exceptions. Newer versions of typer contain a copy of click, so it cannot be imported by name.
ClickException: type[Exception] = typer.BadParameter.__mro__[2]  # above it: UsageError, ClickException


@dataclass(frozen=True)
class Failure:
    """Outcome of a command that failed.

    Attributes:
        kind: class of the error.
        message: what is wrong and what to do.
        code: the exit code.
    """

    kind: str
    message: str
    code: int = 2


def failure_of(error: BaseException) -> Failure:
    """Return the message and exit code for an exception that no command has caught."""
    kind, text = type(error).__name__, str(error)
    if isinstance(error, InstructEditError):
        return Failure(kind, text)
    if is_out_of_memory(error):
        return Failure(
            "EditorError",
            "out of memory. Use a smaller --batch, a smaller model, or --dtype bfloat16; `instructedit doctor` shows "
            "how much memory a model needs.",
        )
    if isinstance(error, RecursionError):
        return Failure("DataError", "an input is nested too deeply")
    if isinstance(error, UnicodeEncodeError) and "surrogates" in error.reason:
        return Failure("DataError", "a text contains a lone surrogate (\\ud800 to \\udfff), which is not a character")
    if isinstance(error, ValueError) and "null" in text and ("byte" in text or "character" in text):
        return Failure("DataError", "a file name contains a NUL character")
    if isinstance(error, OSError):
        where = error.filename if error.filename is not None else "a file or the output cannot be read or written"
        return Failure("DataError", f"{where}: {error.strerror or text or kind}")
    return Failure(
        "internal",
        f"internal error {kind}: {' '.join(text.split())} ({_location(error)}); please report it. "
        "INSTRUCTEDIT_DEBUG=1 shows the traceback.",
        70,
    )


def _location(error: BaseException) -> str:
    """Return file and line of the innermost frame in this package, or else of the innermost frame."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if _PACKAGE in Path(frame.filename).parents and "cli/app" not in frame.filename]
    last = (ours or list(frames))[-1:]
    return ", ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in last) or "unknown place"
