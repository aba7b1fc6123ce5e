"""Deltas in the format of llama.cpp: a LoRA adapter, and a whole model with the delta merged into its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter

from instructedit.deltas.delta import Delta
from instructedit.errors import DataError, DeltaError, ModelError
from instructedit.export.card import REQUESTS_FIELD, requests_as_json
from instructedit.export.lora import LoraAdapter, as_lora
from instructedit.models.language_model import LanguageModel
from instructedit.storage.writing import replaced_atomically

#: The types of merged matrices that the package gguf can write.
TYPES = ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
#: Architectures that llama.cpp names in another way than the configurations of transformers.
_ARCHITECTURES = {"mistral": "llama", "gemma3_text": "gemma3", "qwen2_moe": "qwen2moe", "gpt_neox": "gptneox"}
#: llama.cpp stores these of some architectures with their rows in another order.
_REORDERED = ("attn_q", "attn_k", "attn_qkv")
_OWN_FIELDS = ("GGUF.version", "GGUF.tensor_count", "GGUF.kv_count", "general.architecture")


def export_gguf_adapter(delta: Delta, language_model: LanguageModel, path: Path) -> LoraAdapter:
    """Write the delta as a LoRA adapter that llama.cpp loads beside the base model (``--lora FILE``).

    Raises:
        DeltaError: see :func:`as_lora`; or llama.cpp has no name for a matrix, or stores it in another order.
        ModelError: llama.cpp does not know the architecture.
        DataError: the file cannot be written.
    """
    adapter = as_lora(delta, language_model)
    names = tensor_names(delta, language_model)
    with replaced_atomically(path) as temporary:
        writer = GGUFWriter(temporary, _architecture(language_model))
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", float(adapter.rank))
        writer.add_string(REQUESTS_FIELD, requests_as_json(delta))
        for module, name in names.items():
            writer.add_tensor(f"{name}.lora_a", np.ascontiguousarray(adapter.a[module].numpy()))
            writer.add_tensor(f"{name}.lora_b", np.ascontiguousarray(adapter.b[module].numpy()))
        _write(writer)
    return adapter


def merge_into_gguf(
    delta: Delta,
    language_model: LanguageModel,
    source: Path,
    path: Path,
    *,
    kind: str = "Q8_0",
    others: str | None = None,
) -> None:
    """Write a copy of the base model's GGUF file with the delta added to its dequantised matrices.

    Args:
        delta: the edit.
        language_model: its base model, in any precision.
        source: the base model as GGUF; everything but the weights is taken from it.
        path: the new file.
        kind: quantisation of the edited matrices, one of :data:`TYPES`. A coarse one may lose the edit.
        others: quantisation of all other matrices; None leaves them as they are.

    Raises:
        DeltaError: see :func:`export_gguf_adapter`; or the file's matrices have other shapes.
        ModelError: the file is no GGUF file of this architecture.
        DataError: the file cannot be written.
    """
    delta.check(language_model)
    names = {name: module for module, name in tensor_names(delta, language_model).items()}
    try:
        reader = GGUFReader(source)
    except (OSError, ValueError) as error:
        raise ModelError(f"{source}: cannot be read as GGUF: {error}") from None
    fields = reader.fields
    architecture = fields["general.architecture"].contents() if "general.architecture" in fields else None
    if architecture != _architecture(language_model):
        raise ModelError(
            f"{source} holds the architecture {architecture}, but the model is {_architecture(language_model)}"
        )
    missing = names.keys() - {tensor.name for tensor in reader.tensors}
    if missing:
        raise ModelError(f"{source} has no tensor {sorted(missing)[0]}, which the delta changes")
    with replaced_atomically(path) as temporary:
        writer = GGUFWriter(temporary, architecture)
        for name, stored in fields.items():
            if name not in _OWN_FIELDS:
                writer.add_key_value(name, stored.contents(), stored.types[0], _element_type(stored))
        for tensor in reader.tensors:
            factor = delta.factors[names[tensor.name]] if tensor.name in names else None
            wanted = kind if factor is not None else others
            if wanted is None or (factor is None and not _is_matrix(tensor)):
                writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
                continue
            weight = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(tuple(reversed(tensor.shape.tolist())))
            if factor is not None:
                change = factor.dense().mT.cpu().numpy()
                if change.shape != weight.shape:
                    raise DeltaError(f"{tensor.name} has shape {weight.shape} in {source}, its delta {change.shape}")
                weight = weight + change
            quantisation = GGMLQuantizationType[wanted]
            writer.add_tensor(tensor.name, _quantised(weight, quantisation), raw_dtype=quantisation)
        _write(writer)


def tensor_names(delta: Delta, language_model: LanguageModel) -> Mapping[str, str]:
    """Return the names of the changed weights in GGUF, by module.

    Raises:
        DeltaError: llama.cpp has no name for a matrix, or stores it in another order.
        ModelError: llama.cpp does not know the architecture.
    """
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[_architecture(language_model)], len(language_model.structure.blocks))
    stored: dict[str, str] = {}
    for module in delta.factors:
        name = names.get_name(f"{module}.weight", try_suffixes=(".weight",))
        if name is None:
            raise DeltaError(f"llama.cpp has no name for {module} in this architecture; use --format merged")
        if any(f".{part}." in name for part in _REORDERED):
            raise DeltaError(
                f"{module}: llama.cpp stores query and key matrices in another order, which is not supported; edit "
                "other matrices, or use --format merged"
            )
        stored[module] = name
    return stored


def _architecture(language_model: LanguageModel) -> str:
    """Return llama.cpp's name of the model's architecture."""
    own = str(language_model.model.config.get_text_config().model_type)
    name = _ARCHITECTURES.get(own, own)
    if name not in gguf.MODEL_ARCH_NAMES.values():
        raise ModelError(f"llama.cpp has no architecture {name}; use --format peft or --format merged")
    return name


def _is_matrix(tensor: Any) -> bool:
    """Return whether a tensor of a GGUF file is one that is quantised: norms and biases are not."""
    return len(tensor.shape) == 2 and int(tensor.shape[0]) % 32 == 0


def _quantised(weight: np.ndarray[Any, Any], kind: GGMLQuantizationType) -> np.ndarray[Any, Any]:
    """Return the weights in a type of GGUF.

    Raises:
        DataError: the type stores blocks of weights, and the rows are not whole blocks.
    """
    try:
        return gguf.quantize(np.ascontiguousarray(weight, dtype=np.float32), kind)
    except gguf.QuantError:
        raise DataError(f"rows of {weight.shape[-1]} weights cannot be written as {kind.name}; use F16") from None


def _element_type(stored: Any) -> GGUFValueType | None:
    """Return the type of an array's elements; None for a single value."""
    return stored.types[-1] if stored.types[0] is GGUFValueType.ARRAY else None


def _write(writer: GGUFWriter) -> None:
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
