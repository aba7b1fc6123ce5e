"""Deltas on disk: safetensors with the metadata in the header."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError
from torch import Tensor

from instructedit.deltas.delta import Delta, DeltaMetadata
from instructedit.deltas.factors import Dense, Factor, LowRank
from instructedit.errors import DataError, DeltaError, validation_messages
from instructedit.storage.reading import parse_json
from instructedit.storage.tensors import pack, unpack
from instructedit.storage.writing import write_atomically

FORMAT = "instructedit-delta/2"
#: The last part of a tensor's name, by the factor that it belongs to.
LOW_RANK, DENSE = {"a", "b"}, {"change"}


def save_delta(delta: Delta, path: str | Path) -> None:
    """Write a delta; a failure leaves no half-written file, and the same delta gives the same bytes.

    Tensors are named ``<module>.a`` and ``<module>.b``, or ``<module>.change`` where a change is dense; the header
    holds ``format``, the metadata as JSON, and the SHA-256 of the tensors.

    Raises:
        DataError: the file cannot be written.
    """
    write_atomically(path, pack_delta(delta))


def pack_delta(delta: Delta) -> bytes:
    """Return the content of a delta's file; equal deltas give equal bytes."""
    return pack(delta.tensors, {"format": FORMAT, "metadata": delta.metadata.model_dump_json()})


def load_sum(paths: Sequence[str | Path]) -> Delta:
    """Return the sum of saved deltas; :func:`load_delta` and :meth:`Delta.__add__` say what is raised."""
    first, *others = [load_delta(path) for path in paths]
    return sum(others, start=first)


def load_delta(path: str | Path) -> Delta:
    """Read a delta.

    Raises:
        DeltaError: no such file, damaged, not a delta, or its tensors are no factors.
    """
    header, tensors = unpack(path, FORMAT, "a delta", DeltaError)
    try:
        metadata = DeltaMetadata.model_validate(parse_json(header["metadata"]))
    except KeyError:
        raise DeltaError(f"file {path}: its header contains no metadata") from None
    except ValidationError as error:
        raise DeltaError(f"file {path}: its metadata is damaged: {'; '.join(validation_messages(error))}") from None
    except DataError as error:
        raise DeltaError(f"file {path}: its metadata is damaged: {error}") from None
    return Delta(_factors(path, tensors), metadata)


def _factors(path: str | Path, tensors: Mapping[str, Tensor]) -> dict[str, Factor]:
    """Return the factors by module name.

    Raises:
        DeltaError: there are none, a factor lacks a tensor, or a factor's tensors do not fit together.
    """
    if not tensors:
        raise DeltaError(f"file {path}: contains no factors; make the edit again")
    parts: dict[str, dict[str, Tensor]] = {}
    for tensor_name, tensor in tensors.items():
        module, _, part = tensor_name.rpartition(".")
        if part not in LOW_RANK | DENSE:
            raise DeltaError(f"file {path}: contains a tensor that is not a factor: {tensor_name[:200]}")
        parts.setdefault(module, {})[part] = tensor
    return {module: _factor(path, module, parts[module]) for module in sorted(parts)}


def _factor(path: str | Path, module: str, parts: Mapping[str, Tensor]) -> Factor:
    """Return the factor of one module.

    Args:
        path: the file, for messages.
        module: the module's name.
        parts: its tensors by the last part of their names.

    Raises:
        DeltaError: a tensor is missing, or the tensors do not fit together.
    """
    if parts.keys() not in (LOW_RANK, DENSE) or not module:
        given = ", ".join(sorted(parts))
        raise DeltaError(
            f"file {path}: module {module!r} has the factors {given}, expected a and b, or change; the file is damaged"
        )
    shapes = " and ".join(str(tuple(tensor.shape)) for tensor in parts.values())
    if not all(tensor.ndim == 2 and tensor.numel() for tensor in parts.values()):
        raise DeltaError(f"file {path}: the factors of {module} have shapes {shapes}; expected matrices")
    if parts.keys() == LOW_RANK and parts["a"].shape[1] != parts["b"].shape[0]:
        raise DeltaError(f"file {path}: the factors of {module} have shapes {shapes}, which cannot be multiplied")
    dtypes = {tensor.dtype for tensor in parts.values()}
    if len(dtypes) > 1 or not all(dtype.is_floating_point for dtype in dtypes):
        kinds = " and ".join(sorted(str(dtype) for dtype in dtypes))
        raise DeltaError(
            f"file {path}: the factors of {module} have the types {kinds}; expected one floating-point type"
        )
    factor = Dense(**parts) if parts.keys() == DENSE else LowRank(**parts)
    if not factor.finite():
        raise DeltaError(f"file {path}: the factors of {module} contain NaN or infinity; make the edit again")
    return factor
