"""Hooks that are always taken away again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch.utils.hooks import RemovableHandle


@contextmanager
def held(hook: RemovableHandle) -> Iterator[None]:
    """Keep a registered hook for the duration of the ``with``."""
    try:
        yield
    finally:
        hook.remove()
