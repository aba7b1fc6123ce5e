"""Headers and JSON files of a checkpoint folder, read without loading weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from instructedit.errors import DataError, ModelError
from instructedit.storage.reading import parse_json, read_text

_SINGLE_FILE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as described by the header of its checkpoint file.

    Attributes:
        file: the safetensors file.
        shape: its shape.
        dtype: safetensors' name of its type, for example ``BF16``.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: str


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a checkpoint folder by name, read from the files' headers only.

    Raises:
        ModelError: a file is missing, damaged or outside the folder.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in _weight_files(folder):
        try:
            with safe_open(str(file), framework="pt") as weights:
                for name in weights.keys():  # noqa: SIM118
                    part = weights.get_slice(name)
                    tensors[name] = StoredTensor(file, tuple(part.get_shape()), part.get_dtype())
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{file}: cannot be read as safetensors: {error}; download it again") from None
    return tensors


def _weight_files(folder: Path) -> list[Path]:
    """Return the files that transformers would read: the single file, or else those of the index."""
    if (folder / _SINGLE_FILE).is_file():
        return [folder / _SINGLE_FILE]
    index = folder / _INDEX
    if not index.is_file():
        return []
    names = read_json_object(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise ModelError(f"{index}: field weight_map must map each tensor to its file; download it again")
    files = []
    for name in sorted(set(names.values())):
        if Path(name).name != name or "\0" in name:
            raise ModelError(f"{index}: field weight_map names {name!r}, which is not a file of the folder")
        if not (folder / name).is_file():
            raise ModelError(f"{index}: field weight_map names {name}, which is missing; download it")
        files.append(folder / name)
    return files


def read_json_object(file: Path) -> dict[str, Any]:
    """Return the JSON object that a file of a checkpoint contains.

    Raises:
        ModelError: it contains something else.
    """
    try:
        value = parse_json(read_text(file))
    except DataError as error:
        raise ModelError(f"{file}: is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{file}: must contain a JSON object, not {type(value).__name__}; download it again")
    return value
