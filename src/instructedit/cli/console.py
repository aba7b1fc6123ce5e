"""The one place where text goes to the terminal: consoles that print it literally, tables, progress, and JSON.

Prompts, file names, answers of models and of endpoints are other people's text. rich would read ``[red]`` in it as
markup (and fail on ``[/b]``), and a terminal obeys its escape sequences. So no other module imports rich, and whatever
is printed here stands there as it is, control characters as visible escapes (``\\x1b``).
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.progress import Task as RichTask
from rich.table import Table
from rich.text import Text

from instructedit.storage.writing import write_atomically

#: Exit code when the reader of a pipe has gone (``| head``): 128 + SIGPIPE, which is what a shell expects.
PIPE_CLOSED = 141
#: Seconds between the lines that tell of progress where there is no terminal.
EVERY = 10.0

# Control characters without tab and newline, line separators, overrides of the writing direction, halves of pairs.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """The text with every character that a terminal would obey, or could not show, as its escape."""
    return _UNSEEN.sub(lambda found: _escape(ord(found[0])), text)


def _escape(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class Console(RichConsole):
    """A console without markup, emoji codes and highlighting: what is printed is what was given.

    Style is for our own words: ``out.print(styled(("name", "bold"), ": text"))`` or ``out.print(text, style="dim")``.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        """Every string comes by here, a table's cells and title, too."""
        options |= {"markup": False, "emoji": False, "highlight": False, "highlighter": None}
        return super().render_str(visible(text), **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich's; what rich has no form for (a path, a number, a list) is printed as its ``str``."""
        super().print(
            *(each if isinstance(each, str) or hasattr(each, "__rich_console__") else str(each) for each in objects),
            **options,
        )

    def on_broken_pipe(self) -> NoReturn:
        """Nobody reads any more (``| head``): end quietly."""
        self.quiet = True
        leave(self.file)
        raise SystemExit(PIPE_CLOSED)


def leave(stream: Any) -> None:
    """Send what a stream still holds nowhere, or Python complains about it once more while it ends."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


out = Console()
err = Console(stderr=True)


def styled(*parts: str | tuple[str, str]) -> Text:
    """Text of several parts, each plain or a pair of text and style: ``styled(("zsre", "bold"), ": a fact")``."""
    pairs = ((part, "") if isinstance(part, str) else part for part in parts)
    return Text.assemble(*((visible(text), style) for text, style in pairs))


def table(*heads: str, title: str | Text | None = None, **options: Any) -> Table:
    """A table; cells are plain strings, or :func:`styled`."""
    return Table(*heads, title=title, **options)


def fail(kind: str, message: str) -> None:
    """Say on standard error what went wrong. Lines are not broken, so that paths can be copied."""
    err.print(styled(("error", "bold red"), f" {kind}"))
    err.print(message, soft_wrap=True)


class _Handler(logging.Handler):
    """Log messages and warnings quote other people's text, too."""

    def emit(self, record: logging.LogRecord) -> None:
        err.print(self.format(record), soft_wrap=True)


def log_to_console() -> None:
    """What libraries log or warn of goes to standard error, literally."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[_Handler()])
    logging.captureWarnings(True)


class _TextColumn(TextColumn):
    def render(self, task: RichTask) -> Text:
        return Text(visible(self.text_format.format(task=task).replace("\n", " ")))


class Progress:
    """How far something is, on standard error: bars on a terminal, else a line now and then, for logs and pipes."""

    def __init__(self) -> None:
        self._bar: RichProgress | None = None
        if err.is_terminal and not err.is_dumb_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = RichProgress(
                _TextColumn("{task.description}"),
                *columns,
                _TextColumn("{task.fields[note]}"),
                console=err,
                transient=True,
            )
        self._jobs: list[dict[str, Any]] = []
        self._told = -math.inf
        self._untold: int | None = None

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._untold is not None:
            self._tell(self._untold)

    def add_task(self, description: str, total: float | None = None, note: str = "") -> int:
        """A further thing to follow; returns what :meth:`update` takes."""
        if self._bar is not None:
            return self._bar.add_task(description, total=total, note=note)
        if self._untold is not None:  # the phase before this one has ended
            self._tell(self._untold)
        self._jobs.append({"description": description, "total": total, "completed": 0, "note": note})
        self._told = -math.inf  # the first step of a phase is told at once
        return len(self._jobs) - 1

    def update(
        self,
        job: int,
        *,
        advance: float | None = None,
        completed: float | None = None,
        total: float | None = None,
        note: str | None = None,
    ) -> None:
        """How far it is now; what is left out stays."""
        if self._bar is not None:
            more = {} if note is None else {"note": note}
            self._bar.update(job, advance=advance, completed=completed, total=total, **more)  # type: ignore[arg-type]
            return
        state = self._jobs[job]
        new = {"completed": completed, "total": total, "note": note}
        state |= {key: value for key, value in new.items() if value is not None}
        state["completed"] += advance or 0
        self._untold = job
        if time.monotonic() - self._told >= EVERY:
            self._tell(job)

    def _tell(self, job: int) -> None:
        state = self._jobs[job]
        of = "" if state["total"] is None else f"/{state['total']:g}"
        line = f"{state['description']} {state['completed']:g}{of} {state['note']}".replace("\n", " ")
        err.print(line.rstrip(), soft_wrap=True)
        self._told, self._untold = time.monotonic(), None


def progress() -> Progress:
    """A :class:`Progress` on standard error, so that standard output stays clean for results."""
    return Progress()


def quiet_libraries() -> None:
    """Keep the libraries' own bars and advice out of the commands' output."""
    import warnings

    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=UserWarning, module="torch.nn.modules.transformer")


def emit_json(value: Any, target: Path | None = None) -> None:
    """One JSON value on standard output (no target, or ``-``), or into a file.

    Numbers that JSON has no form for are null. Where the output's encoding lacks a character, it is escaped.
    """
    value = _finite(value)
    if target is None or str(target) == "-":
        stream = sys.stdout
        text = _json(value, getattr(stream, "encoding", None) or "utf-8")
        try:
            stream.write(text)
            stream.flush()
        except BrokenPipeError:
            out.on_broken_pipe()
    else:
        write_atomically(target, _json(value, "utf-8").encode())


def _json(value: Any, encoding: str) -> str:
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = json.dumps(value, indent=2, allow_nan=False)
    return text + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
