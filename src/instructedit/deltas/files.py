"""Deltas on disk: safetensors with the metadata in the header."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from instructedit.deltas.delta import Delta, DeltaMetadata, LowRank
from instructedit.errors import DeltaError
from instructedit.files import write_atomically

FORMAT = "instructedit-delta/1"


def save_delta(delta: Delta, path: str | Path) -> None:
    """Write a delta; a failure leaves no half-written file.

    Tensors are named ``<module>.a`` and ``<module>.b``; the header holds ``format`` and the metadata as JSON.
    """
    tensors = {}
    for name, low in delta.factors.items():
        tensors[f"{name}.a"] = low.a.detach().cpu().contiguous()
        tensors[f"{name}.b"] = low.b.detach().cpu().contiguous()
    header = {"format": FORMAT, "metadata": delta.metadata.model_dump_json()}
    write_atomically(Path(path), save(tensors, header))


def load_delta(path: str | Path) -> Delta:
    """Read a delta.

    Raises:
        DeltaError: no such file, damaged, or not a delta.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            tensors: dict[str, torch.Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DeltaError(f"file {path}: cannot be read as a delta: {error}") from None
    if header.get("format") != FORMAT:
        raise DeltaError(f"file {path}: is not a delta ({header.get('format') or 'no format in its header'})")
    try:
        metadata = DeltaMetadata.model_validate_json(header["metadata"])
        factors = {
            name.removesuffix(".a"): LowRank(tensor, tensors[name.removesuffix(".a") + ".b"])
            for name, tensor in tensors.items()
            if name.endswith(".a")
        }
    except (KeyError, ValidationError) as error:
        raise DeltaError(f"file {path}: its header or tensors are damaged: {error}") from None
    return Delta(factors, metadata)
