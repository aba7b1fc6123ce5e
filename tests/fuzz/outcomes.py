"""Runs one input under a time limit and says what came of it."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

import typer
import typer.main
import yaml
from safetensors import SafetensorError, safe_open

import instructedit
from instructedit.cli.app import app, main
from instructedit.cli.console import err as err_console
from instructedit.cli.console import out as out_console
from instructedit.errors import InstructEditError

#: Seconds that an input may take.
LIMIT = 20.0
#: Bytes of memory that an input may take beyond what the process has.
MEMORY = 6 << 30
#: What the payloads in model folders and YAML would leave in the working folder if anything ran them.
CANARY = "canary"

_SOURCE = str(Path(instructedit.__file__).parent)


class Outcome(StrEnum):
    """What can come of an input; all but the first two are forbidden."""

    SUCCESS = "success"
    REFUSED = "refused"
    TRACEBACK = "traceback"
    HANG = "hang"
    HALF_FILE = "half file"
    EXECUTED = "executed code"
    NAN = "nan"


ALLOWED = (Outcome.SUCCESS, Outcome.REFUSED)


@dataclass(frozen=True)
class Verdict:
    """An outcome with what is needed to find its cause.

    Attributes:
        what: exception and message, or the file concerned.
        place: the deepest line of the package's own that was running.
    """

    outcome: Outcome
    what: str = ""
    place: str = ""

    @property
    def signature(self) -> str:
        """Equal for inputs that fail in the same way at the same place."""
        return f"{self.outcome}: {self.what.partition(':')[0]} at {self.place or '?'}"


@dataclass(frozen=True)
class Ran:
    """A command that was run in this process."""

    code: int
    out: str
    err: str


class Stuck(BaseException):
    """Raised in an input that takes longer than its limit; no `except Exception` swallows it."""


@functools.cache
def _whole() -> Any:
    """The commands, which typer would put together anew for each call."""
    return typer.main.get_command(app)


_whole()


def command(*arguments: str) -> Ran:
    """Run ``instructedit`` in this process with its output caught; whatever it asks is answered with yes."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2)]
    before, sys.argv, sys.stdin = (sys.argv, sys.stdin), ["instructedit", *arguments], io.StringIO("y\n" * 20)
    code = 0
    try:
        with (
            contextlib.redirect_stdout(streams[0]),
            contextlib.redirect_stderr(streams[1]),
            patch.object(typer.main, "get_command", lambda instance: _whole()),
        ):
            try:
                main()
            except SystemExit as left:
                code = left.code if isinstance(left.code, int) else 0 if left.code is None else 1
    finally:
        sys.argv, sys.stdin = before
        for console in (out_console, err_console):  # a line that could not be written would come again
            console.begin_capture()
            console.end_capture()
    out, err = (stream.buffer.getvalue().decode() for stream in streams)  # type: ignore[attr-defined]
    return Ran(code, out, err)


def judge(use: Callable[[], object], folder: Path, *, seconds: float = LIMIT) -> Verdict:
    """Run ``use`` inside ``folder`` and judge it, and every file that it left below ``folder / "out"``."""
    (folder / "out").mkdir(exist_ok=True)
    verdict = _verdict(use, folder, seconds)
    if (folder / CANARY).exists():
        return Verdict(Outcome.EXECUTED, f"{CANARY}: code out of the input was run", verdict.place)
    if verdict.outcome in ALLOWED:
        for path in sorted((folder / "out").rglob("*")):
            fault = _fault_of(path) if path.is_file() else None
            if fault is not None:
                return Verdict(fault, f"{path.name}: after {verdict.outcome} {verdict.what}", path.name)
    return verdict


def _verdict(use: Callable[[], object], folder: Path, seconds: float) -> Verdict:
    try:
        with contextlib.chdir(folder), _limits(seconds):
            found = use()
    except InstructEditError as error:
        return _refusal(str(error))
    except Stuck as error:
        return Verdict(Outcome.HANG, f"more than {seconds:.0f} s", _place(error))
    except Exception as error:  # noqa: BLE001 - the point of it all
        return Verdict(Outcome.TRACEBACK, f"{type(error).__name__}: {str(error)[:300]}", _place(error))
    if not isinstance(found, Ran):
        return Verdict(Outcome.SUCCESS)
    if "Traceback (most recent call last)" in found.err + found.out:
        return Verdict(Outcome.TRACEBACK, f"printed: {found.err[-300:]}")
    if found.code == 2:
        return _refusal(found.err)
    if found.code != 0:
        return Verdict(Outcome.TRACEBACK, f"exit {found.code}: {found.err[-300:]}")
    if found.out.lstrip().startswith("{"):
        try:
            json.loads(found.out, parse_constant=_no_number)
        except ValueError as error:
            return Verdict(Outcome.NAN, f"{type(error).__name__}: {error}", "standard output")
    return Verdict(Outcome.SUCCESS)


def _refusal(message: str) -> Verdict:
    """A refusal, if it says something that can be printed."""
    if not message.strip():
        return Verdict(Outcome.TRACEBACK, "empty: a refusal without a word")
    try:
        message.encode()
    except UnicodeEncodeError as error:
        return Verdict(Outcome.TRACEBACK, f"UnicodeEncodeError: the message cannot be printed: {error}", "message")
    return Verdict(Outcome.REFUSED, message[:200])


def _place(error: BaseException) -> str:
    """``deltas/saving.py:41``: the deepest line of the package; for errors outside it, of what was running."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename.startswith(_SOURCE)]
    found = (own or frames)[-1:]
    return "".join(f"{frame.filename.removeprefix(_SOURCE).lstrip('/')}:{frame.lineno}" for frame in found)


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _fault_of(path: Path) -> Outcome | None:
    """What is wrong with a file that was left: temporary, cut off, or with NaN in it."""
    if path.name.endswith(".tmp"):
        return Outcome.HALF_FILE
    content = path.read_bytes()
    try:
        if content.startswith(b"#") or path.suffix in {".yaml", ".yml"}:  # templates under any name
            if content[8:9] != b"{":  # else a delta under such a name, which is the user's choice
                yaml.safe_load(content.decode())
        elif path.suffix == ".json":
            json.loads(content.decode())
        elif path.suffix == ".safetensors":
            with safe_open(str(path), framework="pt") as stored:
                stored.keys()
    except (ValueError, yaml.YAMLError, SafetensorError):
        return Outcome.HALF_FILE
    if path.suffix == ".json":
        try:
            json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
        except ValueError:
            return Outcome.NAN
    return None


@contextlib.contextmanager
def _limits(seconds: float) -> Iterator[None]:
    """Raise :class:`Stuck` in the main thread after ``seconds``, and MemoryError where memory runs away.

    The alarm clock is left alone: transformers sets and clears it when it asks a question.
    """
    main_thread = threading.main_thread().ident
    assert main_thread is not None

    def stop(number: int, frame: Any) -> NoReturn:
        raise Stuck

    before = signal.signal(signal.SIGUSR1, stop)
    memory = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    clock = threading.Timer(seconds, signal.pthread_kill, (main_thread, signal.SIGUSR1))
    clock.daemon = True
    clock.start()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, memory[1]))
    try:
        yield
    finally:
        clock.cancel()
        resource.setrlimit(resource.RLIMIT_AS, memory)
        signal.signal(signal.SIGUSR1, before)
