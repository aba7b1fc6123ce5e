"""Where data files are: the folder of public data sets, which the project does not ship, and the bundled edits."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from instructedit.assets import ASSETS
from instructedit.errors import DataError

DATA_VARIABLE = "INSTRUCTEDIT_DATA"
#: Folder of the edits that ship with the package.
BUNDLED_EDITS = ASSETS / "edits"
#: What the name of a bundled file starts with, where a file of the data folder could stand as well.
BUNDLED_PREFIX = "bundled/"


def data_folder() -> Path | None:
    """Return the folder that ``INSTRUCTEDIT_DATA`` names, or None."""
    value = os.environ.get(DATA_VARIABLE)
    return Path(value) if value else None


def data_file(name: str | Path, data: Path = Path()) -> Path:
    """Return the path of a data file.

    Args:
        name: ``bundled/x`` for a file that ships with the package, else a path relative to ``data``.
        data: the data folder; default the current folder, for names that a user gives on the command line.
    """
    text = str(name)
    if text.startswith(BUNDLED_PREFIX):
        return BUNDLED_EDITS / text.removeprefix(BUNDLED_PREFIX)
    return data / name


def needs_data_folder(name: str) -> bool:
    """Return whether a data file is looked for in the data folder: it is neither bundled nor an absolute path."""
    return not name.startswith(BUNDLED_PREFIX) and not Path(name).is_absolute()


def find_data(names: Iterable[str] | None = None) -> Path:
    """Return the data folder.

    Args:
        names: of the files that are read; if all are bundled or have whole paths, no data folder is needed.

    Raises:
        DataError: ``INSTRUCTEDIT_DATA`` is not set, or names no folder.
    """
    folder = data_folder()
    if names is not None and not any(map(needs_data_folder, names)):
        return folder or Path()
    if folder is None or not folder.is_dir():
        raise DataError(
            f"the data sets were not found; set {DATA_VARIABLE} to the folder that contains them", file=folder
        )
    return folder
