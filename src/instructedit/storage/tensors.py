"""Tensors on disk: safetensors whose header carries the SHA-256 of the tensors, with the same bytes every time."""

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

TENSORS_DIGEST, HEADER_DIGEST = "sha256", "header_sha256"


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over every tensor's name, dtype, shape and bytes, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def pack(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> bytes:
    """A safetensors file: equal tensors and headers give equal bytes.

    Args:
        header: texts by key; the digests of tensors and header are added to it.
    """
    whole = {**header, TENSORS_DIGEST: tensors_digest(tensors)}
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    (length,) = struct.unpack("<Q", content[:8])
    # The library writes its header's keys in a random order: it is written again, by offset in the data.
    entries = json.loads(content[8 : 8 + length])
    ordered = {"__metadata__": {**dict(sorted(whole.items())), HEADER_DIGEST: _header_digest(whole)}}
    ordered |= dict(sorted(entries.items(), key=lambda entry: (entry[1]["data_offsets"], entry[0])))
    text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def unpack(
    path: str | Path, form: str, what: str, error: type[InstructEditError]
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Header and tensors of a file that :func:`pack` wrote, checked against its digests.

    Args:
        form: the header's ``format``, for example ``instructedit-delta/2``.
        what: the file's kind in words, for messages.
        error: is raised, with a message that says what is wrong.

    Raises:
        InstructEditError: of the kind ``error``: no such file, not safetensors, another format, or damaged.
    """
    try:
        with safe_open(str(path), framework="pt") as stored:
            header = dict(stored.metadata() or {})
            tensors: dict[str, Tensor] = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, RuntimeError, TypeError, AttributeError) as problem:
        raise error(f"file {path}: cannot be read as {what}: {_first_line(problem)}") from None
    found = header.get("format")
    if found != form:
        kind, _, version = form.rpartition("/")
        if found is not None and found.startswith(f"{kind}/"):
            raise error(
                f"file {path}: was written by another version of instructedit (format {found}, this one reads "
                f"/{version}): make it anew"
            )
        raise error(f"file {path}: is not {what} ({found or 'no format in its header'})")
    expected = {key: header.pop(key, None) for key in (HEADER_DIGEST, TENSORS_DIGEST)}
    whole = {**header, TENSORS_DIGEST: expected[TENSORS_DIGEST] or ""}
    if expected != {HEADER_DIGEST: _header_digest(whole), TENSORS_DIGEST: tensors_digest(tensors)}:
        raise error(f"file {path}: is damaged: its content does not have the SHA-256 that it states; copy it again")
    return whole, tensors


def _header_digest(header: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(dict(sorted(header.items()))).encode()).hexdigest()


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
