"""Child processes that end when their parent does, however it ends."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress


class Children:
    """Child processes of this one.

    Args:
        environment: Environment variables of each.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.ended = False
        self._environment = environment
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()

    def run(self, arguments: Sequence[str]) -> tuple[int, str]:
        """Return exit status and standard error of a Python process; nothing is started after :meth:`end`."""
        with self._lock:
            if self.ended:
                return 0, ""
            child = subprocess.Popen(
                [sys.executable, *arguments],
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
            self._running.add(child)
        assert child.stderr is not None
        assert child.stdin is not None
        try:
            errors = child.stderr.read()
            return child.wait(), errors
        finally:
            with self._lock:
                self._running.discard(child)
            child.stdin.close()
            child.stderr.close()

    def end(self) -> None:
        """End all children, and start no more."""
        with self._lock:
            self.ended = True
            for child in self._running:
                child.terminate()


def end_with_parent() -> None:
    """End this process when the one that started it ends, with :mod:`multiprocessing` or :class:`Children`.

    The latter's process keeps the standard input of this one open while it lives.
    """
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)
        with suppress(OSError):
            while os.read(0, 1):
                pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
