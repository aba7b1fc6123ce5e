"""Atomic writing of files, and locks on output folders."""

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

#: Name of temporary files. It does not contain the target's name, which may already have the maximum length.
_TEMPORARY = ".instructedit-{}.tmp"


def write_atomically(path: str | Path, content: bytes) -> None:
    """Replace a file's content: write to a temporary file in the same folder, sync, then rename.

    Symbolic links are followed, an existing file keeps its mode, and a new file gets the default mode of the umask.
    Devices and pipes (``/dev/null``, a FIFO) are written to, never replaced. Missing folders are created.

    Raises:
        DataError: the folder cannot be created or written, or the path is a folder.
    """
    with _os_errors_as_data_errors(path):
        target, mode = _target(path)
        if mode is not None and not stat.S_ISREG(mode):
            with target.open("wb") as stream:
                stream.write(content)
            return
        if mode is not None and not os.access(target, os.W_OK):
            raise PermissionError(0, "it is read-only")
        _replace(target, content, None if mode is None else stat.S_IMODE(mode))


@contextmanager
def replaced_atomically(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of the file, for a writer that takes a path; rename it at the end.

    After an error the file is as it was.

    Raises:
        DataError: the folder cannot be created or written, or the path is a folder.
    """
    with _os_errors_as_data_errors(path):
        target, _ = _target(path)
    temporary = _temporary(target.parent)
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(target)
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror or error}", file=path) from None
    finally:
        temporary.unlink(missing_ok=True)  # it exists only after an error


def as_json(value: Any, *, indent: int | None = None, file: object = None) -> str:
    """Return a value as standard JSON, which has no NaN and no infinity.

    Args:
        value: dictionaries, lists, strings and numbers.
        indent: spaces for each level; None writes one line.
        file: the file that the text is for, for the message.

    Raises:
        DataError: a number is NaN or infinite; its position in ``value`` is named.
    """
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError:
        position = _first_not_finite(value, "")
        raise DataError(f"is not written: {position or 'a number'} is NaN or infinite", file=file) from None


def _first_not_finite(value: Any, position: str) -> str | None:
    """Return the position of the first number that is not finite, as ``a.0.b``; None if there is none."""
    if isinstance(value, float):
        return None if math.isfinite(value) else position.removeprefix(".")
    parts: Iterable[tuple[object, Any]] = ()
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, (list, tuple)):
        parts = enumerate(value)
    positions = (_first_not_finite(part, f"{position}.{key}") for key, part in parts)
    return next((position for position in positions if position is not None), None)


def append_line(path: str | Path, line: str, *, sync: bool = True) -> None:
    """Append a line to a UTF-8 text file, which is created if needed.

    Args:
        path: the file.
        line: the text without a line break.
        sync: flush the line to disk before returning.

    Raises:
        DataError: the file cannot be written, or the disk is full.
    """
    with _os_errors_as_data_errors(path):
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("a", encoding="utf-8", newline="\n") as stream:
            stream.write(line + "\n")
            stream.flush()
            if sync:
                os.fsync(stream.fileno())


def check_writable(path: str | Path) -> None:
    """Check that :func:`write_atomically` can write a file, so that a long run does not fail at its end.

    Raises:
        DataError: the file cannot be written.
    """
    with _os_errors_as_data_errors(path):
        target, mode = _target(path)
        if mode is not None and not os.access(target, os.W_OK):
            raise PermissionError(0, "no permission")
        if mode is None or stat.S_ISREG(mode):
            # A test file is created, because permissions are not enough: root has them on a read-only file system.
            if len(os.fsencode(target.name)) > os.pathconf(target.parent, "PC_NAME_MAX"):
                raise OSError(0, "the name is too long")
            probe = _temporary(target.parent)
            os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
            probe.unlink()


def make_folder(path: str | Path) -> Path:
    """Create an output folder with its parents, and check that files can be written into it.

    Raises:
        DataError: it cannot be created or written.
    """
    with _os_errors_as_data_errors(path, "the folder cannot be created", "folder"):
        Path(path).mkdir(parents=True, exist_ok=True)
    check_writable(Path(path) / ".probe")
    return Path(path)


@contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold an exclusive lock on a folder, or an existing file, inside the ``with`` block.

    The lock is on the folder itself: there is no lock file, and the system releases the lock when the process ends.
    Temporary files that a killed process has left in the folder are removed.

    Args:
        path: the folder or file.
        wait: wait until another process releases the lock, instead of raising an error.

    Raises:
        DataError: another process holds the lock, or the folder cannot be opened.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise DataError(f"cannot be opened: {error.strerror}", file=path) from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                "another process is writing here. Wait until it ends, or choose another --out", file=path
            ) from None
        except OSError:
            pass  # some network file systems have no locks
        if path.is_dir():  # with the lock no other process writes here, so temporary files are left over
            for temporary in path.glob(_TEMPORARY.format("*")):
                temporary.unlink(missing_ok=True)
        yield
    finally:
        os.close(handle)


@contextmanager
def _os_errors_as_data_errors(path: str | Path, what: str = "cannot be written", kind: str = "file") -> Iterator[None]:
    """Convert an ``OSError`` inside the ``with`` block into a :class:`DataError` that names the path."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{what}: {error.strerror or error}", file=path) from None
    except ValueError as error:  # a NUL character in the path
        raise DataError(f"is not a valid {kind} name: {error}", file=repr(str(path))) from None


def _target(path: str | Path) -> tuple[Path, int | None]:
    """Resolve links, create the parent folder, and return the file and its mode (None if it does not exist).

    Raises:
        DataError: the path is a folder.
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    mode = _mode(target)
    if mode is not None and stat.S_ISDIR(mode):
        raise DataError("cannot be written: it is a folder", file=path)
    return target, mode


def _mode(path: Path) -> int | None:
    """Return a file's mode; None if it does not exist."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None


def _temporary(folder: Path) -> Path:
    return folder / _TEMPORARY.format(uuid.uuid4().hex[:12])


def _replace(target: Path, content: bytes, mode: int | None) -> None:
    temporary = _temporary(target.parent)
    # The umask applies to the mode 0666, as for any new file.
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
        temporary.unlink(missing_ok=True)  # it exists only after an error
    folder = os.open(target.parent, os.O_RDONLY)
    with suppress(OSError):  # makes the rename durable; not supported by every file system
        os.fsync(folder)
    os.close(folder)
