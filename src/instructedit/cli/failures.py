"""What a command says, and its exit code, when it cannot go on.

2     something is wrong with what was given, or with the machine: the message says what to do
70    a defect of ours (EX_SOFTWARE of sysexits.h); INSTRUCTEDIT_DEBUG=1 shows the traceback
130   interrupted by the user
141   nobody reads the output any more (``| head``); ends without a word
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path

import typer

from instructedit.errors import InstructEditError, is_out_of_memory

INTERRUPTED = "interrupted; what is finished is kept, and the same command goes on from there"
_PACKAGE = Path(__file__).parents[1]
#: typer raises click's exceptions, or those of the copy of click that newer versions hold; this is the root of either.
ClickException: type[Exception] = typer.BadParameter.__mro__[2]  # above it: UsageError, ClickException


@dataclass(frozen=True)
class Failure:
    """How a command ends.

    Args:
        kind: a word for what went wrong.
        message: what is wrong and what to do.
        code: the exit code.
    """

    kind: str
    message: str
    code: int = 2


def failure_of(error: BaseException) -> Failure:
    """What to say of an exception that no command caught."""
    kind, said = type(error).__name__, str(error)
    if isinstance(error, InstructEditError):
        return Failure(kind, said)
    if is_out_of_memory(error):
        return Failure(
            "EditorError",
            "the memory is not enough. Take a smaller --batch, a smaller model, or --dtype bfloat16; "
            "`instructedit doctor` says what a model needs.",
        )
    if isinstance(error, RecursionError):
        return Failure("DataError", "something in what was given nests too deeply")
    if isinstance(error, UnicodeEncodeError) and "surrogates" in error.reason:
        return Failure("DataError", "a text holds half of a surrogate pair (\\ud800 to \\udfff), which is no character")
    if isinstance(error, ValueError) and "null" in said and ("byte" in said or "character" in said):
        return Failure("DataError", "a file name holds a NUL character")
    if isinstance(error, OSError):
        where = error.filename if error.filename is not None else "the output, or a file, cannot be written or read"
        return Failure("DataError", f"{where}: {error.strerror or said or kind}")
    place = _place(error)
    return Failure(
        "internal",
        f"internal error {kind}: {' '.join(said.split())} ({place}); please report it. "
        "INSTRUCTEDIT_DEBUG=1 shows the traceback.",
        70,
    )


def _place(error: BaseException) -> str:
    """The last line of our own that the error came by, else the last of all."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if _PACKAGE in Path(frame.filename).parents and "cli/app" not in frame.filename]
    last = (ours or list(frames))[-1:]
    return ", ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in last) or "unknown place"
