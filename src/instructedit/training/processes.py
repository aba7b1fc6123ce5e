"""Training in several processes with Accelerate: set-up, output lock, numbers averaged, a lost process reported."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
import torch.distributed as distributed
from accelerate.accelerator import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils.dataclasses import DistributedDataParallelKwargs

from instructedit.errors import EditorError
from instructedit.storage.writing import locked
from instructedit.training.recipe import Optimisation


def make_accelerator(device: torch.device, optimisation: Optimisation) -> Accelerator:
    """Return the accelerator of a training on ``device``; with one process it changes nothing.

    Raises:
        EditorError: The batch cannot be divided evenly among the processes.
    """
    AcceleratorState._reset_state()  # a process may train again with another precision; its process group stays
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=optimisation.mixed_precision,
        # The only buffers are running statistics, which the editor itself reduces over the processes.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    if optimisation.batch % accelerator.num_processes:
        raise EditorError(
            f"optimisation.batch is {optimisation.batch}, which {accelerator.num_processes} processes cannot share "
            "evenly; choose a multiple"
        )
    return accelerator


def mean_over_processes(accelerator: Accelerator, value: float) -> float:
    """Return the mean of a number over all processes."""
    if accelerator.num_processes == 1:
        return value
    return float(accelerator.reduce(torch.tensor(value, device=accelerator.device), "mean"))


@contextmanager
def locked_by_first_process(out: Path) -> Iterator[None]:
    """Keep other trainings out of a folder; of the processes that train together, the first holds the lock.

    Raises:
        DataError: Another training is writing there.
    """
    with locked(out) if is_first_process() else nullcontext():
        yield


def is_first_process() -> bool:
    """Return whether this is the first of the processes that train together, also before the accelerator is made."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def lost_process_reported(checkpoint: Path) -> Iterator[None]:
    """Turn a failed exchange between processes into a message that says how to resume.

    Raises:
        EditorError: Another process has ended or cannot be reached.
    """
    try:
        yield
    except RuntimeError as error:
        in_exchange = isinstance(error, distributed.DistError) or "gloo" in str(error)
        if not (distributed.is_initialized() and in_exchange):
            raise
        raise EditorError(
            "another process of this training has ended or cannot be reached. See its own messages; then start the "
            f"same command again in all processes: training resumes from {checkpoint}"
        ) from error
