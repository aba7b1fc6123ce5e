"""Deltas on disk: safetensors with the metadata in the header."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError
from torch import Tensor

from instructedit.deltas.delta import Delta, DeltaMetadata, LowRank
from instructedit.errors import DataError, DeltaError, validation_messages
from instructedit.storage.reading import parse_json
from instructedit.storage.tensors import pack, unpack
from instructedit.storage.writing import write_atomically

FORMAT = "instructedit-delta/2"


def save_delta(delta: Delta, path: str | Path) -> None:
    """Write a delta; a failure leaves no half-written file, and the same delta gives the same bytes.

    Tensors are named ``<module>.a`` and ``<module>.b``; the header holds ``format``, the metadata as JSON, and the
    SHA-256 of the tensors.

    Raises:
        DataError: the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    for name, low in delta.factors.items():
        tensors |= {f"{name}.a": low.a, f"{name}.b": low.b}
    header = {"format": FORMAT, "metadata": delta.metadata.model_dump_json()}
    write_atomically(path, pack(tensors, header))


def load_delta(path: str | Path) -> Delta:
    """Read a delta.

    Raises:
        DeltaError: no such file, damaged, not a delta, or its tensors are no pairs of factors.
    """
    header, tensors = unpack(path, FORMAT, "a delta", DeltaError)
    try:
        metadata = DeltaMetadata.model_validate(parse_json(header["metadata"]))
    except KeyError:
        raise DeltaError(f"file {path}: its header holds no metadata") from None
    except ValidationError as error:
        raise DeltaError(f"file {path}: its metadata are damaged: {'; '.join(validation_messages(error))}") from None
    except DataError as error:
        raise DeltaError(f"file {path}: its metadata are damaged: {error}") from None
    return Delta(_factors(path, tensors), metadata)


def _factors(path: str | Path, tensors: Mapping[str, Tensor]) -> dict[str, LowRank]:
    """The pairs of factors by module, checked.

    Raises:
        DeltaError: none, a factor without its other half, or tensors that cannot be multiplied.
    """
    if not tensors:
        raise DeltaError(f"file {path}: holds no factors, so it changes nothing")
    factors = {}
    for name in sorted({tensor.rpartition(".")[0] for tensor in tensors}):
        pair = [tensors.get(f"{name}.{side}") for side in ("a", "b")]
        a, b = pair
        if a is None or b is None or not name:
            raise DeltaError(f"file {path}: module {name!r} has one factor of two; the file is incomplete")
        shapes = f"{tuple(a.shape)} and {tuple(b.shape)}"
        if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0] or not a.shape[1]:
            raise DeltaError(f"file {path}: the factors of {name} have shapes {shapes}, which cannot be multiplied")
        if not (a.is_floating_point() and a.dtype == b.dtype):
            raise DeltaError(
                f"file {path}: the factors of {name} are {a.dtype} and {b.dtype}, not two of one float type"
            )
        factors[name] = LowRank(a, b)
        if not factors[name].finite():
            raise DeltaError(f"file {path}: the factors of {name} hold NaN or infinity; make the edit anew")
    if len(tensors) != 2 * len(factors):
        raise DeltaError(f"file {path}: holds tensors that are no factors: {', '.join(sorted(tensors))[:200]}")
    return factors
