"""Reading users' YAML, and writing files so that nobody ever reads half of one."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import yaml

from instructedit.errors import DataError


def read_yaml_file(path: Path) -> Any:
    """What a user's YAML file says.

    Raises:
        DataError: it cannot be read, is not UTF-8 or is not YAML.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", file=path) from None
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8 text (byte {error.start})", file=path) from None
    except yaml.YAMLError as error:
        raise DataError(f"is not valid YAML: {error}", file=path) from None


def write_atomically(path: Path, content: bytes) -> None:
    """Write to a temporary name beside ``path``, sync, then rename over it.

    Raises:
        DataError: the folder does not exist or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror}", file=path) from None
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise DataError(f"cannot be written: {error.strerror}", file=path) from None
