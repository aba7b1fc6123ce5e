"""The number of CPU threads of a command: ``--threads``, ``OMP_NUM_THREADS``, or the free cores."""

from __future__ import annotations

import os

from instructedit.cli.console import err, quiet_libraries
from instructedit.threads import THREADS_VARIABLE, free_threads, usable_cores


def request_threads(count: int | None) -> None:
    """Take the number of ``--threads`` for this command and the processes that it starts."""
    if count is not None:
        os.environ[THREADS_VARIABLE] = str(count)


def requested_threads() -> int | None:
    """Return the number that ``--threads`` or ``OMP_NUM_THREADS`` gives; None where neither gives one."""
    given = os.environ.get(THREADS_VARIABLE, "")
    return int(given) if given.isdecimal() and int(given) > 0 else None


def prepare_computation() -> None:
    """Import PyTorch quietly and set its threads; say so if some cores are left to other processes."""
    quiet_libraries()
    import torch

    requested = requested_threads()
    if requested is not None:  # PyTorch may have been imported before it was set
        torch.set_num_threads(requested)
    if os.environ.get(THREADS_VARIABLE):
        return
    threads, cores = free_threads(), usable_cores()
    torch.set_num_threads(threads)
    if threads < cores:
        err.print(
            f"{threads} of {cores} cores are free and used; `instructedit --threads N` sets another number", style="dim"
        )
