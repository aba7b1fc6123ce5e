"""What the kill test starts and kills; a module of its own, so that its processes import nothing else."""

from __future__ import annotations

from multiprocessing.connection import Connection
from pathlib import Path

import torch

from instructedit.deltas.delta import Delta, DeltaMetadata
from instructedit.deltas.factors import LowRank
from instructedit.deltas.saving import save_delta
from instructedit.storage.writing import write_atomically

TEXTS = tuple(bytes([65 + number]) * (200_000 + 50_000 * number) for number in range(3))


def delta(number: int) -> Delta:
    """One of three deltas of a few hundred kilobytes."""
    a = torch.full((400 + 100 * number, 64), float(number + 1))
    return Delta({"x": LowRank(a, a[:64].mT.contiguous()[:64])}, DeltaMetadata(base=str(number)))


def write_for_ever(folder: Path, ready: Connection) -> None:
    """Write a delta and a file over and over, until somebody ends it."""
    torch.set_num_threads(1)
    found = [delta(number) for number in range(3)]
    ready.send(True)
    step = 0
    while True:
        save_delta(found[step % 3], folder / "x.safetensors")
        write_atomically(folder / "x.txt", TEXTS[step % 3])
        step += 1
