"""Writing files so that nobody ever reads half of one, and keeping a second process out of an output folder."""

from __future__ import annotations

import fcntl
import json
import math
import os
import stat
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from instructedit.errors import DataError

#: What temporary files are called: not after their target, whose name may be as long as a name can be.
_TEMPORARY = ".instructedit-{}.tmp"


def write_atomically(path: str | Path, content: bytes) -> None:
    """Replace a file's content: write to a temporary file beside it, sync, then rename.

    A symbolic link is followed, an existing file keeps its mode, and a new one gets what the umask leaves. A device
    or pipe that the user names (``/dev/null``, a FIFO) is written to, never replaced.

    Raises:
        DataError: the folder cannot be made or written, or the path is a folder.
    """
    with _failing_as_data_error(path):
        target, mode = _target(path)
        if mode is not None and not stat.S_ISREG(mode):
            with target.open("wb") as stream:
                stream.write(content)
            return
        if mode is not None and not os.access(target, os.W_OK):
            raise PermissionError(0, "it is read-only")
        _replace(target, content, None if mode is None else stat.S_IMODE(mode))


def as_json(value: Any, *, indent: int | None = None, file: object = None) -> str:
    """JSON by the standard.

    Raises:
        DataError: a number in it is NaN or infinite, which no reader has to take, and no result should be; its place is
            named.
    """
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError:
        place = _not_finite(value, "")
        raise DataError(f"is not written: {place or 'a number'} is NaN or infinite", file=file) from None


def _not_finite(value: Any, place: str) -> str | None:
    if isinstance(value, float):
        return None if math.isfinite(value) else place.removeprefix(".")
    parts: Iterable[tuple[object, Any]] = ()
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, (list, tuple)):
        parts = enumerate(value)
    return next((found for key, part in parts if (found := _not_finite(part, f"{place}.{key}")) is not None), None)


def append_line(path: str | Path, line: str, *, sync: bool = True) -> None:
    """Add a line to a UTF-8 text file, which is made if it is not there.

    Args:
        line: without its end.
        sync: see to it that the line is on the disk before going on.

    Raises:
        DataError: the file cannot be written, or the disk is full.
    """
    with _failing_as_data_error(path):
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("a", encoding="utf-8", newline="\n") as stream:
            stream.write(line + "\n")
            stream.flush()
            if sync:
                os.fsync(stream.fileno())


def check_writable(path: str | Path) -> None:
    """Make sure, before hours of work, that :func:`write_atomically` can write here.

    Raises:
        DataError: as :func:`write_atomically`.
    """
    with _failing_as_data_error(path):
        target, mode = _target(path)
        if mode is not None and not os.access(target, os.W_OK):
            raise PermissionError(0, "no permission")
        if mode is None or stat.S_ISREG(mode):
            # Asking for permissions is not enough: root has them on a read-only file system, too.
            if len(os.fsencode(target.name)) > os.pathconf(target.parent, "PC_NAME_MAX"):
                raise OSError(0, "the name is too long")
            probe = _temporary(target.parent)
            os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
            probe.unlink()


def make_folder(path: str | Path) -> Path:
    """Make an output folder, with those above it, and make sure that files can be written into it.

    Raises:
        DataError: it cannot be made or written.
    """
    with _failing_as_data_error(path, "the folder cannot be made", "folder"):
        Path(path).mkdir(parents=True, exist_ok=True)
    check_writable(Path(path) / ".probe")
    return Path(path)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep every other process that asks for the same lock out of a folder (or an existing file).

    The lock is on the folder itself, so no lock file is left behind, and it ends with the process, however it ends.
    Temporary files that a killed process left in the folder are removed.

    Raises:
        DataError: another process holds it, or the folder cannot be opened.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise DataError(f"cannot be opened: {error.strerror}", file=path) from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                "another process is writing here. Wait until it has ended, or give another --out", file=path
            ) from None
        except OSError:
            pass  # some network file systems have no locks
        if path.is_dir():  # nobody else writes here, so what is temporary was left by a process that was killed
            for left in path.glob(_TEMPORARY.format("*")):
                left.unlink(missing_ok=True)
        yield
    finally:
        os.close(handle)


@contextmanager
def _failing_as_data_error(path: str | Path, what: str = "cannot be written", kind: str = "file") -> Iterator[None]:
    """What the system refuses inside the ``with`` becomes a :class:`DataError` that names the path."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{what}: {error.strerror or error}", file=path) from None
    except ValueError as error:  # a NUL character in the path
        raise DataError(f"is not a {kind} name: {error}", file=repr(str(path))) from None


def _target(path: str | Path) -> tuple[Path, int | None]:
    """The file that a path leads to through links, its folder made, and its mode; None where there is no file.

    Raises:
        DataError: it is a folder.
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    mode = _mode(target)
    if mode is not None and stat.S_ISDIR(mode):
        raise DataError("cannot be written: it is a folder", file=path)
    return target, mode


def _mode(path: Path) -> int | None:
    """A file's mode; None where there is no file."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None


def _temporary(folder: Path) -> Path:
    return folder / _TEMPORARY.format(uuid.uuid4().hex[:12])


def _replace(target: Path, content: bytes, mode: int | None) -> None:
    temporary = _temporary(target.parent)
    # Made with what the umask leaves of 0666, as any new file is.
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
            if mode is not None:
                os.fchmod(stream.fileno(), mode)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)  # still there only if something failed
    folder = os.open(target.parent, os.O_RDONLY)
    with suppress(OSError):  # makes the rename itself durable; not every file system can
        os.fsync(folder)
    os.close(folder)
