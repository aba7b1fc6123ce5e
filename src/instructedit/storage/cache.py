"""The cache folder: what can be computed or downloaded again."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

CACHE_VARIABLE = "INSTRUCTEDIT_CACHE"


def cache_folder() -> Path:
    """Return the cache folder: ``INSTRUCTEDIT_CACHE``, or ``instructedit`` in the user's cache folder.

    Without a home folder it is in the one for temporary files.
    """
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    shared = os.environ.get("XDG_CACHE_HOME")
    if shared:
        return Path(shared) / "instructedit"
    try:
        return Path.home() / ".cache" / "instructedit"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"instructedit-{os.getuid()}"
