"""What is checked of a checkpoint: before a model is built from it, and of the model that was built.

A folder may come from anywhere. Its configuration decides how much memory is taken and its files what goes into it, so
both are compared before anything is allocated; code that a folder brings is never run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from instructedit.errors import DataError, InstructEditError, ModelError, out_of_memory
from instructedit.models.finite import finite
from instructedit.storage.reading import parse_json, read_text

#: Bytes of an element as safetensors names its type.
WIDTHS = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
#: Accelerate's own placements.
PLACEMENTS = ("auto", "balanced", "balanced_low_0", "sequential")
_ONE_FILE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a checkpoint, as its file's header describes it."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


@contextmanager
def loading(what: str, kind: type[InstructEditError], advice: str) -> Iterator[None]:
    """Turn whatever a loading library raises inside the ``with`` into one error with the first line of its message.

    Raises:
        InstructEditError: of this kind; those that are raised inside pass unchanged.
    """
    try:
        yield
    except InstructEditError:
        raise
    # What transformers, tokenizers, safetensors and accelerate raise for a damaged file is of no common type and
    # changes with their versions: this is the one place where any exception is caught.
    except Exception as error:  # noqa: BLE001
        line = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        if "trust_remote_code" in str(error):
            line = "it needs code of its own (auto_map), and code that comes with a checkpoint is never run"
        elif out_of_memory(error):
            line = f"out of memory ({line})"
            advice = "Load it in bfloat16 (--dtype), on a GPU (--device), or spread it (--device-map auto)."
        raise kind(f"cannot load {what}: {line}\n{advice}") from None


def check_source(source: object) -> str:
    """The path or hub id as text.

    Raises:
        ModelError: neither, or a path that no file system takes.
    """
    if not isinstance(source, (str, Path)):
        raise ModelError(
            f"a model is loaded from a folder or a hub id, not from a {type(source).__name__}; a model that is loaded "
            "already is wrapped by LanguageModel(model, tokenizer, source)"
        )
    text = str(source)
    if not text or "\0" in text:
        raise ModelError(f"{text!r} is not a path or hub id")
    try:
        Path(text).exists()
    except (OSError, ValueError) as error:
        problem = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ModelError(
            f"{text[:80] + ('…' if len(text) > 80 else '')!r} is not a path or hub id: {problem}"
        ) from None
    return text


def check_device(device: str) -> None:
    """Refuse a device that does not exist.

    Raises:
        ModelError: the name is not known, or there is no such device here.
    """
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise ModelError(f"device {device!r} is not known; give cpu, cuda, cuda:1, … or auto") from None
    if kind == "meta":
        raise ModelError("device 'meta' holds no numbers; give cpu, cuda, cuda:1, … or auto")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ModelError(
            f"device {device!r} is asked for, and PyTorch finds no GPU here; leave --device out for the CPU"
        )
    if kind == "cuda" and (torch.device(device).index or 0) >= torch.cuda.device_count():
        raise ModelError(f"device {device!r} is asked for, and there are {torch.cuda.device_count()} GPUs, from cuda:0")


def read_config(path: str, source: object) -> PreTrainedConfig:
    """The configuration of a checkpoint; of a type that transformers knows its own class is taken.

    Raises:
        ModelError: not a JSON object, or an encoder-decoder model.
    """
    file = Path(path) / "config.json"
    if file.is_file():
        _json_object(file)
    config: PreTrainedConfig = AutoConfig.from_pretrained(path, trust_remote_code=False)
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{source} is an encoder-decoder model; only decoder-only models are edited")
    return config


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor that a load of this folder would read, by name; nothing but headers is read.

    Raises:
        ModelError: a file is missing, damaged or outside the folder; the file is named.
    """
    found: dict[str, StoredTensor] = {}
    for file in _weight_files(folder):
        try:
            with safe_open(str(file), framework="pt") as weights:
                for name in weights.keys():  # noqa: SIM118
                    part = weights.get_slice(name)
                    found[name] = StoredTensor(file, tuple(part.get_shape()), part.get_dtype())
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{file}: cannot be read as safetensors: {error}; copy it again") from None
    return found


def _weight_files(folder: Path) -> list[Path]:
    """The files that transformers reads: the single one, else those of the index."""
    if (folder / _ONE_FILE).is_file():
        return [folder / _ONE_FILE]
    index = folder / _INDEX
    if not index.is_file():
        return []
    names = _json_object(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise ModelError(f"{index}: field weight_map has to name the file of every tensor; copy it again")
    files = []
    for name in sorted(set(names.values())):
        if Path(name).name != name or "\0" in name:
            raise ModelError(f"{index}: field weight_map names {name!r}, which is not a file of the folder itself")
        if not (folder / name).is_file():
            raise ModelError(f"{index}: field weight_map names {name}, which is missing; copy it again")
        files.append(folder / name)
    return files


def _json_object(file: Path) -> dict[str, Any]:
    try:
        found = parse_json(read_text(file))
    except DataError as error:
        raise ModelError(f"{file}: is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ModelError(f"{file}: has to be a JSON object, not {type(found).__name__}; copy it again")
    return found


def build_without_memory(config: PreTrainedConfig, stored: Mapping[str, StoredTensor], source: object) -> nn.Module:
    """The model that a configuration describes, with shapes instead of numbers.

    Raises:
        ModelError: the configuration does not describe the stored tensors; field or tensor are named.
    """
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    # A block holds at least one tensor; so this is asked before as many blocks are made.
    if stored and not (isinstance(layers, int) and 0 < layers <= len(stored)):
        raise ModelError(
            f"{source}: config.json says num_hidden_layers {layers!r}, the checkpoint holds {len(stored)} tensors"
        )
    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    for name, parameter in model.named_parameters():
        tensor = _stored_as(name, model, stored)
        if tensor is not None and tensor.shape != tuple(parameter.shape):
            raise ModelError(
                f"{source}: {name} has the shape {tensor.shape} in {tensor.file.name} and by config.json "
                f"{tuple(parameter.shape)}; the two files do not belong together"
            )
    return model


def _stored_as(name: str, model: nn.Module, stored: Mapping[str, StoredTensor]) -> StoredTensor | None:
    """A parameter's stored tensor: a checkpoint of the body alone leaves the body's prefix out."""
    prefix = str(getattr(model, "base_model_prefix", "")) + "."
    return stored.get(name) or stored.get(name.removeprefix(prefix))


def check_memory(model: nn.Module, stored: Mapping[str, StoredTensor], dtype: str, width: int, folder: Path) -> None:
    """Refuse to load into memory what is larger than the free memory.

    Args:
        model: as :func:`build_without_memory` makes it.
        dtype: what is loaded, for the message.
        width: bytes of an element; 0 takes each tensor's stored width.

    Raises:
        ModelError: with both sizes.
    """
    needed = sum((width or WIDTHS.get(tensor.dtype, 1)) * math.prod(tensor.shape) for tensor in stored.values())
    # What is not in the files is made, whatever its size.
    made = [part for name, part in model.named_parameters() if _stored_as(name, model, stored) is None]
    tied = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    needed += sum(part.numel() * (width or 2) for part in made if tied is None or part is not tied.weight)
    needed += sum(buffer.nbytes for buffer in model.buffers())
    free = psutil.virtual_memory().available
    if needed > free:
        raise ModelError(
            f"{folder} needs {needed / 1e9:.1f} GB as {dtype}, and {free / 1e9:.1f} GB of memory are free. "
            "Load it in bfloat16 (--dtype), on a GPU (--device), or spread it (--device-map auto)."
        )


def check_device_map(device_map: str | Mapping[str, str | int], model: nn.Module) -> None:
    """Refuse a placement that names what is not there.

    Raises:
        ModelError: a module or device is not known; it is named.
    """
    if isinstance(device_map, str):
        if device_map not in PLACEMENTS:
            check_device(device_map)
        return
    known = {name for name, _ in (*model.named_modules(), *model.named_parameters(), *model.named_buffers())}
    unknown = sorted(str(name) for name in device_map if name not in known)
    if unknown:
        raise ModelError(
            f"the device map names {', '.join(unknown[:5])}, which the model does not have; "
            f"its parts are {', '.join(name for name, _ in model.named_children())}, …"
        )
    for name, device in device_map.items():
        if device == "disk":
            continue
        if isinstance(device, bool) or not isinstance(device, (str, int)):
            raise ModelError(f"the device map puts {name!r} on {device!r}; give a device's name or number, or disk")
        check_device(f"cuda:{device}" if isinstance(device, int) else device)


def check_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: object) -> None:
    """Refuse a loaded model that cannot compute: parameters in memory are finite, and every token has an embedding.

    Raises:
        ModelError: the parameter or token is named.
    """
    for name, parameter in model.named_parameters():
        if not parameter.is_meta and not finite(parameter.detach()):
            raise ModelError(f"{source}: the weights hold NaN or infinity, first in {name}; copy the checkpoint again")
    if not isinstance(tokenizer.model_max_length, (int, float)):
        raise ModelError(f"{source}: tokenizer_config.json: model_max_length is no number")
    for name in ("pad_token_id", "eos_token_id", "bos_token_id"):
        ids = getattr(model.generation_config, name, None)
        if not all(isinstance(each, int) for each in (ids if isinstance(ids, list) else [ids or 0])):
            raise ModelError(f"{source}: generation_config.json: {name} is no token id")
    embedding = model.get_input_embeddings().weight
    assert isinstance(embedding, Tensor)
    rows = embedding.shape[0]
    # Special tokens may lie beyond the embedding where a text never holds them; the vocabulary may not.
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    last = max(((id_, token) for token, id_ in tokenizer.get_vocab().items() if id_ not in special), default=(0, ""))
    if last[0] >= rows:
        raise ModelError(
            f"{source}: the tokenizer gives {last[1]!r} the id {last[0]}, and the embedding has {rows} rows; "
            "tokenizer and weights do not belong together"
        )
