"""The processes of an experiment on a Ray cluster: the same commands as on one machine, on any of its nodes."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from instructedit.errors import EditorError
from instructedit.experiments.processes import Children
from instructedit.threads import THREADS_VARIABLE


class Cluster:
    """A Ray cluster, which runs processes as :class:`Children` does.

    Every node needs this package in the same version, and the experiment's folders under the same paths.

    Args:
        address: Of the cluster: ``auto`` for the one of this machine, ``HOST:PORT``, ``ray://HOST:PORT``, or ``local``
            for a new one.
        threads: CPU cores that each process takes.

    Raises:
        EditorError: Ray is not installed, or there is no cluster at that address.
    """

    def __init__(self, address: str, threads: int) -> None:
        try:
            import ray
        except ImportError:
            raise EditorError("--ray needs Ray: pip install 'instructedit[ray]'") from None
        try:
            _connect_once(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, RuntimeError, ValueError) as error:
            raise EditorError(f"there is no Ray cluster at {address}: {str(error).splitlines()[0]}") from None
        self.ended = False
        self._ray = ray
        self._environment = {THREADS_VARIABLE: str(threads)}
        self._remote = ray.remote(num_cpus=threads, max_retries=0)(run_here)
        self._running: set[Any] = set()

    def run(self, arguments: Sequence[str]) -> tuple[int, str]:
        """Return exit status and standard error of a Python process, once a node has run it."""
        if self.ended:
            return 0, ""
        result = self._remote.remote(list(arguments), self._environment)
        self._running.add(result)
        try:
            status, errors = self._ray.get(result)
        except self._ray.exceptions.RayError as error:
            return 1, f"the node failed: {str(error).splitlines()[0]}"
        finally:
            self._running.discard(result)
        return status, errors

    def end(self) -> None:
        """Stop all processes, start no more, and leave the cluster."""
        self.ended = True
        for result in list(self._running):
            with suppress(self._ray.exceptions.RayError):
                self._ray.cancel(result, force=True)
        self._ray.shutdown()


def _connect_once(address: str) -> None:
    """Open a connection to HOST:PORT, as Ray itself tries for minutes.

    Raises:
        OSError: Nothing answers there.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()


def run_here(arguments: Sequence[str], environment: Mapping[str, str]) -> tuple[int, str]:
    """Run a Python process on this node; it ends when the node's worker does."""
    return Children({**os.environ, **environment}).run(arguments)
