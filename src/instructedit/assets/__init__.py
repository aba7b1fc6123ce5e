"""The files that ship with the package, and how they are found."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

ASSETS = Path(__file__).parent


@cache
def read_yaml(name: str) -> Any:
    """A shipped YAML file by its path inside ``assets/``; read once, not to be changed."""
    return yaml.safe_load((ASSETS / name).read_text(encoding="utf-8"))
