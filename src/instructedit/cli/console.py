"""Output of all commands: consoles that print text literally, tables, progress and JSON.

Prompts, file names and the answers of models and endpoints are untrusted text. rich would interpret ``[red]`` in it as
markup (and fail on ``[/b]``), and a terminal would execute its escape sequences. Therefore no other module imports
rich, and everything printed here appears unchanged, with control characters as visible escapes.
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

#: Exit code after the reader of a pipe has closed it (``| head``): 128 + SIGPIPE, as shells expect.
PIPE_CLOSED = 141
#: Seconds between progress lines if the output is not a terminal.
REPORT_INTERVAL = 10.0

# Control characters except tab and newline, line separators, overrides of the writing direction, lone surrogates.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """Return the text with every control character and every character that cannot be printed as an escape."""
    return _CONTROL.sub(lambda match: _escape(ord(match[0])), text)


def _escape(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class Console(RichConsole):
    """A rich console that prints text literally, without markup, emoji codes and highlighting.

    Style is set explicitly: ``out.print(styled(("name", "bold"), ": text"))`` or ``out.print(text, style="dim")``.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        """Convert a string to text; rich calls this for every string, including the cells and title of tables."""
        options |= {"markup": False, "emoji": False, "highlight": False, "highlighter": None}
        return super().render_str(visible(text), **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print like rich's console; objects that rich cannot render (paths, numbers, lists) are printed as ``str``."""
        printable = (
            value if isinstance(value, str) or hasattr(value, "__rich_console__") else str(value) for value in objects
        )
        super().print(*printable, **options)

    def on_broken_pipe(self) -> NoReturn:
        """Exit without a message after the reader of the output has closed it (``| head``)."""
        self.quiet = True
        discard_output(self.file)
        raise SystemExit(PIPE_CLOSED)


def discard_output(stream: Any) -> None:
    """Discard the buffered output of a stream, so that Python does not report it again when it exits."""
    with suppress(OSError, ValueError, AttributeError):
        null_device = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null_device, stream.fileno())
        os.close(null_device)


out = Console()
err = Console(stderr=True)


def styled(*parts: str | tuple[str, str]) -> Text:
    """Return text of several parts, each a string or (string, style): ``styled(("zsre", "bold"), ": a fact")``."""
    with_style = ((part, "") if isinstance(part, str) else part for part in parts)
    return Text.assemble(*((visible(text), style) for text, style in with_style))


def table(*heads: str, title: str | Text | None = None, **options: Any) -> Table:
    """Return a table; its cells are strings or :func:`styled` text."""
    return Table(*heads, title=title, **options)


def fail(kind: str, message: str) -> None:
    """Print an error on standard error. Lines are not wrapped, so that paths can be copied."""
    err.print(styled(("error", "bold red"), f" {kind}"))
    err.print(message, soft_wrap=True)


class _Handler(logging.Handler):
    """Log handler that prints literally, because log messages and warnings can contain untrusted text."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a log record on standard error."""
        err.print(self.format(record), soft_wrap=True)


def log_to_console() -> None:
    """Print log messages and warnings of libraries literally on standard error."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[_Handler()])
    logging.captureWarnings(True)


class _TextColumn(TextColumn):
    """Column of a progress bar with literal text."""

    def render(self, task: RichTask) -> Text:
        """Return the column's text for a task."""
        return Text(visible(self.text_format.format(task=task).replace("\n", " ")))


class Progress:
    """Progress on standard error: bars on a terminal, otherwise a line every 10 seconds, for logs and pipes."""

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
        self._last_report = -math.inf  # time of the last line
        self._unreported: int | None = None  # job with updates since the last line

    def __enter__(self) -> Progress:
        """Show the bars."""
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the bars, or print the line of the last update."""
        if self._bar is not None:
            self._bar.stop()
        elif self._unreported is not None:
            self._report(self._unreported)

    def add_task(self, description: str, total: float | None = None, note: str = "") -> int:
        """Add a job with a description and a total number of steps, and return its number for :meth:`update`."""
        if self._bar is not None:
            return self._bar.add_task(description, total=total, note=note)
        if self._unreported is not None:  # the previous job has ended
            self._report(self._unreported)
        self._jobs.append({"description": description, "total": total, "completed": 0, "note": note})
        self._last_report = -math.inf  # the first step of a job is reported at once
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
        """Update the progress of a job; arguments that are None stay unchanged."""
        if self._bar is not None:
            more = {} if note is None else {"note": note}
            self._bar.update(job, advance=advance, completed=completed, total=total, **more)  # type: ignore[arg-type]
            return
        state = self._jobs[job]
        new = {"completed": completed, "total": total, "note": note}
        state |= {key: value for key, value in new.items() if value is not None}
        state["completed"] += advance or 0
        self._unreported = job
        if time.monotonic() - self._last_report >= REPORT_INTERVAL:
            self._report(job)

    def _report(self, job: int) -> None:
        state = self._jobs[job]
        of = "" if state["total"] is None else f"/{state['total']:g}"
        line = f"{state['description']} {state['completed']:g}{of} {state['note']}".replace("\n", " ")
        err.print(line.rstrip(), soft_wrap=True)
        self._last_report, self._unreported = time.monotonic(), None


def progress() -> Progress:
    """Return a :class:`Progress` on standard error; standard output is for results only."""
    return Progress()


def quiet_libraries() -> None:
    """Turn off progress bars and advice of the libraries."""
    import warnings

    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=UserWarning, module="torch.nn.modules.transformer")


def emit_json(value: Any, target: Path | None) -> bool:
    """Write a value as JSON to the target of a command's ``--json`` option.

    NaN and infinity become null. Characters that the encoding of standard output lacks are escaped.

    Args:
        value: dictionaries, lists, strings and numbers.
        target: a file, ``-`` for standard output, or None to write nothing.

    Returns:
        Whether the value was written to standard output, so that the command must not print anything else there.
    """
    if target is None:
        return False
    value = _finite_or_null(value)
    if str(target) != "-":
        write_atomically(target, _json(value, "utf-8").encode())
        return False
    stream = sys.stdout
    try:
        stream.write(_json(value, getattr(stream, "encoding", None) or "utf-8"))
        stream.flush()
    except BrokenPipeError:
        out.on_broken_pipe()
    return True


def _json(value: Any, encoding: str) -> str:
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = json.dumps(value, indent=2, allow_nan=False)
    return text + "\n"


def _finite_or_null(value: Any) -> Any:
    """Return a value with every NaN and infinity replaced by None."""
    if isinstance(value, dict):
        return {key: _finite_or_null(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite_or_null(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
