"""Loading of weights from checkpoints, and validation before and after.

Checkpoints are untrusted input. A wrong configuration can request any amount of memory, so configuration and stored
tensors are compared before memory is allocated, and code that comes with a checkpoint is never run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from instructedit.errors import InstructEditError, ModelError, is_out_of_memory
from instructedit.models.checkpoint_files import StoredTensor, read_json_object
from instructedit.models.finite import finite

#: Bytes per element for safetensors' names of floating-point types.
ELEMENT_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
_MEMORY_ADVICE = "Load it in bfloat16 (--dtype), on a GPU (--device), or over several devices (--device-map auto)."


@contextmanager
def wrap_load_errors(what: str, kind: type[InstructEditError], advice: str) -> Iterator[None]:
    """Convert any exception that a loading library raises inside the ``with`` block into one error.

    Errors of this package pass unchanged.

    Args:
        what: what is loaded, for the message.
        kind: class of the error to raise.
        advice: what the user can do, for the message.

    Raises:
        InstructEditError: an error of class ``kind`` with the first line of the library's message.
    """
    try:
        yield
    except InstructEditError:
        raise
    # The exceptions of transformers, tokenizers, safetensors and accelerate for a damaged file have no common class
    # and change between versions, so every exception is caught here, and only here.
    except Exception as error:  # noqa: BLE001
        line = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        if "trust_remote_code" in str(error):
            line = "it requires custom code (auto_map), and code that comes with a checkpoint is never run"
        elif is_out_of_memory(error):
            line = f"out of memory ({line})"
            advice = _MEMORY_ADVICE
        raise kind(f"cannot load {what}: {line}\n{advice}") from None


def check_source(source: object) -> str:
    """Return a path or hub id as text.

    Raises:
        ModelError: it is neither, for example a model that is already loaded.
    """
    if not isinstance(source, (str, Path)):
        raise ModelError(
            f"load_language_model takes a folder or a hub id, not a {type(source).__name__}. To use a model that is "
            "already loaded, wrap it: LanguageModel(model, tokenizer)"
        )
    text = str(source)
    if not text or "\0" in text:
        raise ModelError(f"{text!r} is not a path or hub id; give `bundled`, a checkpoint folder or a hub id")
    try:
        Path(text).exists()
    except (OSError, ValueError) as error:
        problem = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ModelError(
            f"{text[:80] + ('…' if len(text) > 80 else '')!r} is not a path or hub id: {problem}"
        ) from None
    return text


def read_config(path: str, source: object) -> PreTrainedConfig:
    """Return the configuration of a checkpoint, as a class of transformers and never as the checkpoint's own code.

    Raises:
        ModelError: ``config.json`` is not a JSON object or describes an encoder-decoder model.
    """
    file = Path(path) / "config.json"
    if file.is_file():
        read_json_object(file)
    config: PreTrainedConfig = AutoConfig.from_pretrained(path, trust_remote_code=False)
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{source} is an encoder-decoder model; only decoder-only models can be edited")
    return config


def build_on_meta_device(config: PreTrainedConfig, stored: Mapping[str, StoredTensor], source: object) -> nn.Module:
    """Build the model that a configuration describes on the meta device, that is without allocating its weights.

    Raises:
        ModelError: the configuration does not match the stored tensors.
    """
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    # Each block has at least one tensor. Checked first, because even blocks without weights take time and memory.
    if stored and not (isinstance(layers, int) and 0 < layers <= len(stored)):
        raise ModelError(
            f"{source}: config.json says num_hidden_layers {layers!r}, but the checkpoint has {len(stored)} tensors; "
            "download config.json again"
        )
    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    for name, parameter in model.named_parameters():
        tensor = _stored_as(name, model, stored)
        if tensor is not None and tensor.shape != tuple(parameter.shape):
            raise ModelError(
                f"{source}: {name} has shape {tensor.shape} in {tensor.file.name}, but {tuple(parameter.shape)} "
                "according to config.json; the two files do not belong together"
            )
    return model


def _stored_as(name: str, model: nn.Module, stored: Mapping[str, StoredTensor]) -> StoredTensor | None:
    """Return the stored tensor of a parameter; checkpoints of a model without its head omit the base prefix."""
    prefix = str(getattr(model, "base_model_prefix", "")) + "."
    return stored.get(name) or stored.get(name.removeprefix(prefix))


def check_memory(
    model: nn.Module, stored: Mapping[str, StoredTensor], dtype: str, element_bytes: int, folder: Path
) -> None:
    """Raise an error if the weights do not fit into the free memory.

    Args:
        model: the model from :func:`build_on_meta_device`.
        stored: the tensors of the checkpoint by name.
        dtype: name of the type that is loaded, for the message.
        element_bytes: bytes per element; 0 uses the type in which each tensor is stored.
        folder: the checkpoint, for the message.

    Raises:
        ModelError: states the required and the free memory.
    """
    needed = sum(
        (element_bytes or ELEMENT_BYTES.get(tensor.dtype, 1)) * math.prod(tensor.shape) for tensor in stored.values()
    )
    # Parameters that are missing from the files would be allocated too, whatever their size.
    missing = [part for name, part in model.named_parameters() if _stored_as(name, model, stored) is None]
    tied = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    needed += sum(part.numel() * (element_bytes or 2) for part in missing if tied is None or part is not tied.weight)
    needed += sum(buffer.nbytes for buffer in model.buffers())
    free = psutil.virtual_memory().available
    if needed > free:
        raise ModelError(
            f"{folder} needs {needed / 1e9:.1f} GB of memory as {dtype}, but only {free / 1e9:.1f} GB are free. "
            f"{_MEMORY_ADVICE}"
        )


def load_weights(
    path: Path,
    source: str | Path,
    dtype: torch.dtype | str,
    device_map: str | Mapping[str, str | int] | None,
    *,
    eager_attention: bool,
) -> PreTrainedModel:
    """Load the model of a checkpoint from its safetensors files.

    Args:
        path: folder or hub id.
        source: the checkpoint as the user named it, for messages.
        dtype: type of the loaded weights; ``auto`` keeps the stored type.
        device_map: Accelerate's device map; None loads into CPU memory.
        eager_attention: compute attention without a fused kernel.

    Raises:
        ModelError: the checkpoint lacks weights of the model.
    """
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        str(path),
        output_loading_info=True,
        dtype=dtype,
        device_map=device_map if device_map is None or isinstance(device_map, str) else dict(device_map),
        use_safetensors=True,  # other weight files are pickles, which can run code
        trust_remote_code=False,
        # For sequences of a few dozen tokens plain attention is faster on a CPU than the fused kernel, whose backward
        # pass alone can take a third of a training step.
        attn_implementation="eager" if eager_attention else None,
    )
    return complete_model(loaded, source)


def complete_model(loaded: tuple[PreTrainedModel, Mapping[str, Any]], source: object) -> PreTrainedModel:
    """Return the model of ``from_pretrained(..., output_loading_info=True)``.

    Raises:
        ModelError: the checkpoint lacks weights of the model.
    """
    model, report = loaded
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ModelError(
            f"the checkpoint {source} lacks {len(missing)} of the model's weights, for example {missing[0]}; download "
            "it again"
        )
    return model


def check_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: object) -> None:
    """Check that a loaded model is usable: finite weights, an embedding for every token, valid special tokens.

    Offloaded weights are not read.

    Raises:
        ModelError: names the parameter, token or field that is wrong.
    """
    for name, parameter in model.named_parameters():
        if not parameter.is_meta and not finite(parameter.detach()):
            raise ModelError(f"{source}: weight {name} contains NaN or infinity; download the checkpoint again")
    if not isinstance(tokenizer.model_max_length, (int, float)):
        raise ModelError(f"{source}: tokenizer_config.json: model_max_length must be a number")
    for name in ("pad_token_id", "eos_token_id", "bos_token_id"):
        ids = getattr(model.generation_config, name, None)
        if not all(isinstance(token_id, int) for token_id in (ids if isinstance(ids, list) else [ids or 0])):
            raise ModelError(f"{source}: generation_config.json: {name} must be a token id or a list of them")
    embedding = model.get_input_embeddings().weight
    assert isinstance(embedding, Tensor)
    rows = embedding.shape[0]
    # Special tokens may have no embedding, because ordinary texts do not contain them; the vocabulary must have one.
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    last = max(((id_, token) for token, id_ in tokenizer.get_vocab().items() if id_ not in special), default=(0, ""))
    if last[0] >= rows:
        raise ModelError(
            f"{source}: the tokenizer gives {last[1]!r} the id {last[0]}, but the embedding has {rows} rows; "
            "tokenizer and weights do not belong together"
        )
