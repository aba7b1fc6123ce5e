"""How many CPU threads to compute with: as many cores as other processes leave free."""

from __future__ import annotations

import os

#: PyTorch's own environment variable; whoever sets it has decided.
THREADS_VARIABLE = "OMP_NUM_THREADS"
#: How threads wait for one another: sleeping instead of spinning, which would slow down every other process.
WAIT_VARIABLE = "OMP_WAIT_POLICY"


def usable_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_threads() -> int:
    """Return how many of the usable cores were free over the last minute, at least 1."""
    try:
        busy = os.getloadavg()[0]
    except (OSError, AttributeError):  # not on every system
        busy = 0.0
    cores = usable_cores()
    return max(1, min(cores, round(cores - busy)))


def sleep_while_waiting() -> None:
    """Let threads sleep while they wait; to be called before PyTorch is imported, which reads the variable once."""
    os.environ.setdefault(WAIT_VARIABLE, "PASSIVE")
