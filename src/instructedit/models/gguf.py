"""GGUF files, the format of llama.cpp, read by transformers and dequantised to dense weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from instructedit.errors import ModelError
from instructedit.models.checkpoint import complete_model

SUFFIX = ".gguf"
_MAGIC = b"GGUF"


def is_gguf(path: Path) -> bool:
    """Return whether a path is a file with the suffix of GGUF."""
    return path.suffix == SUFFIX and path.is_file()


def check_header(path: Path, element_bytes: int) -> None:
    """Check, before memory is allocated, that a file is GGUF and that its weights fit into the free memory.

    Args:
        path: the file.
        element_bytes: bytes of a dequantised weight.

    Raises:
        ModelError: the file is no GGUF or is damaged, states more blocks than it has tensors, or does not fit.
    """
    with path.open("rb") as stream:
        if stream.read(4) != _MAGIC:
            raise ModelError(f"{path}: is not a GGUF file, it does not start with {_MAGIC.decode()}; download it again")
    try:
        from gguf import GGUFReader
    except ImportError:
        raise ModelError(f"{path}: reading GGUF needs the package gguf: pip install gguf") from None
    reader = GGUFReader(path)
    blocks = [field.contents() for name, field in reader.fields.items() if name.endswith(".block_count")]
    if not blocks or not isinstance(blocks[0], int) or not 0 < blocks[0] <= len(reader.tensors):
        raise ModelError(
            f"{path}: block_count is {blocks[0] if blocks else 'missing'}, but the file has {len(reader.tensors)} "
            "tensors; download it again"
        )
    needed = element_bytes * sum(math.prod(int(size) for size in tensor.shape) for tensor in reader.tensors)
    free = psutil.virtual_memory().available
    if needed > free:
        raise ModelError(f"{path} needs {needed / 1e9:.1f} GB of memory, but only {free / 1e9:.1f} GB are free")


def load_gguf(
    path: Path, dtype: torch.dtype, *, device_map: Any = None, eager_attention: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the model and the tokenizer of a GGUF file, with dense weights.

    Args:
        path: the file.
        dtype: of the dequantised weights.
        device_map: as of ``from_pretrained``.
        eager_attention: compute attention without a fused kernel.

    Raises:
        ModelError: as :func:`check_header`; or the file lacks weights of the model.
    """
    check_header(path, dtype.itemsize)
    folder = str(path.parent)
    # By default some releases of transformers keep the weights quantised; edits need dense ones.
    packed = getattr(transformers, "GgufConfig", None)
    dense = {} if packed is None else {"quantization_config": packed(dequantize=True)}
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=path.name,
        trust_remote_code=False,
        **dense,
        output_loading_info=True,
        dtype=dtype,
        device_map=device_map,
        attn_implementation="eager" if eager_attention else None,
    )
    model = complete_model(loaded, path)
    if hasattr(model.config, "quantization_config"):  # the weights are dense now
        del model.config.quantization_config
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=path.name, trust_remote_code=False)
    _limit_positions(tokenizer, model.config)
    return model, tokenizer


def _limit_positions(tokenizer: PreTrainedTokenizerBase, config: Any) -> None:
    """Give a tokenizer that states no length the model's: GGUF has it among the model's numbers only."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions and tokenizer.model_max_length > positions:
        tokenizer.model_max_length = int(positions)
