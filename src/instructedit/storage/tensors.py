"""Deterministic safetensors files with a checksum of header and tensors."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from instructedit.errors import InstructEditError

#: Header keys of the checksums of the tensors and of the header.
TENSORS_DIGEST, HEADER_DIGEST = "sha256", "header_sha256"


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of every tensor's name, dtype, shape and bytes, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def pack(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> bytes:
    """Return the content of a safetensors file; equal tensors and headers give equal bytes.

    Args:
        tensors: tensors by name.
        header: strings by key; the checksums of tensors and header are added.
    """
    header = {**header, TENSORS_DIGEST: tensors_digest(tensors)}
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    (length,) = struct.unpack("<Q", content[:8])
    # The safetensors library writes the keys of its header in random order, so the header is written again with the
    # tensors in the order of their data.
    entries = json.loads(content[8 : 8 + length])
    ordered = {"__metadata__": {**dict(sorted(header.items())), HEADER_DIGEST: _header_digest(header)}}
    ordered |= dict(sorted(entries.items(), key=lambda entry: (entry[1]["data_offsets"], entry[0])))
    text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def unpack(
    path: str | Path, file_format: str, what: str, error: type[InstructEditError]
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Read a file that :func:`pack` wrote, and verify its checksums.

    Args:
        path: the file.
        file_format: the expected ``format`` of the header, for example ``instructedit-delta/2``.
        what: what the file should be, for messages, for example ``a delta``.
        error: class of the error to raise.

    Returns:
        Header and tensors.

    Raises:
        InstructEditError: an error of class ``error``: there is no such file, or it is not safetensors, has another
            format or is damaged.
    """
    try:
        with safe_open(str(path), framework="pt") as stored:
            header = dict(stored.metadata() or {})
            tensors: dict[str, Tensor] = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, RuntimeError, TypeError, AttributeError) as problem:
        raise error(f"file {path}: cannot be read as {what}: {_first_line(problem)}") from None
    _check_format(path, header.get("format"), file_format, what, error)
    stated = {key: header.pop(key, None) for key in (HEADER_DIGEST, TENSORS_DIGEST)}
    header[TENSORS_DIGEST] = stated[TENSORS_DIGEST] or ""
    if stated != {HEADER_DIGEST: _header_digest(header), TENSORS_DIGEST: tensors_digest(tensors)}:
        raise error(f"file {path}: is damaged: its content does not match its checksum; copy it again")
    return header, tensors


def _check_format(
    path: str | Path, stated: str | None, expected: str, what: str, error: type[InstructEditError]
) -> None:
    if stated == expected:
        return
    kind, _, version = expected.rpartition("/")
    if stated is not None and stated.startswith(f"{kind}/"):
        raise error(
            f"file {path}: was written by another version of instructedit (format {stated}; this version reads "
            f"/{version}): create it again with this version"
        )
    raise error(f"file {path}: is not {what} ({stated or 'no format in its header'})")


def _header_digest(header: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(dict(sorted(header.items()))).encode()).hexdigest()


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
