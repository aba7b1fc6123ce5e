"""Where the public data sets are, which the project does not ship."""

from __future__ import annotations

import os
from pathlib import Path

from instructedit.assets import ASSETS
from instructedit.errors import DataError

VARIABLE = "INSTRUCTEDIT_DATA"
#: Edits of our own, which ship with the package, and what stands before their names.
EDITS = ASSETS / "edits"
OWN = "own/"


def data_folder() -> Path | None:
    """The folder that ``INSTRUCTEDIT_DATA`` names, or None."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else None


def data_file(name: str | Path, data: Path = Path()) -> Path:
    """Where a file of the data folder (or, without one, of a user) is; ``own/x`` ships with the package."""
    own = str(name).removeprefix(OWN)
    return EDITS / own if own != str(name) else data / name


def find_data() -> Path:
    """As :func:`data_folder`, where there has to be one.

    Raises:
        DataError: there is none.
    """
    folder = data_folder()
    if folder is None or not folder.is_dir():
        raise DataError(f"the data sets were not found; set {VARIABLE} to the folder that holds them", file=folder)
    return folder
