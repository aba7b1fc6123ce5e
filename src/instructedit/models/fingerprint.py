"""Identity of a base model: fingerprints of its weights and its architecture, and a sketch to compare weights by.

The fingerprint of the weights says whether two models are the same. Where they are not, the architecture says whether
they may be the same model in another precision or quantisation, and the sketches say how far apart the weights are.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterator

import numpy as np
import torch
from accelerate.utils.modeling import align_module_device
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: Values of each parameter in the fingerprint of the weights, and in a sketch.
FINGERPRINT_VALUES = 64
SKETCH_VALUES = 8


@torch.no_grad()
def weights_fingerprint(model: PreTrainedModel) -> str:
    """Return a fingerprint of the weights: 16 hexadecimal digits of a SHA-256.

    The digest covers the name, shape and 64 evenly spaced values of every parameter. The values are rounded to
    bfloat16, so that a checkpoint and its bfloat16 copy have the same fingerprint: a delta fits both.
    """
    digest = hashlib.sha256()
    for name, shape, values in _samples(model, FINGERPRINT_VALUES):
        digest.update(f"{name} {shape}".encode())
        digest.update(values.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def architecture_fingerprint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a fingerprint of the architecture: 16 hexadecimal digits of a SHA-256.

    The digest covers the names and shapes of the parameters and the tokenizer's vocabulary without special tokens,
    which formats store in different ways.
    """
    digest = hashlib.sha256()
    tied = getattr(model, "all_tied_weights_keys", {})
    for name, parameter in sorted(model.named_parameters()):
        if name not in tied:
            digest.update(f"{name} {tuple(parameter.shape)}\n".encode())
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    for token, token_id in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        if token_id not in special:
            digest.update(f"{token_id} {token}\n".encode(errors="surrogatepass"))
    return digest.hexdigest()[:16]


@torch.no_grad()
def weights_sketch(model: PreTrainedModel) -> str:
    """Return 8 evenly spaced values of every matrix in bfloat16, as base64; for :func:`sketch_distance`."""
    values = [values for _, shape, values in _samples(model, SKETCH_VALUES) if len(shape) > 1]
    return base64.b64encode(torch.cat(values).view(torch.int16).numpy().tobytes()).decode()


def sketch_distance(first: str, second: str) -> float | None:
    """Return the relative distance of two models' weights, the median over matrices of |a - b| / |a|.

    Returns:
        0 for equal weights, about 1.4 for unrelated ones; None where the sketches cannot be compared.
    """
    a, b = _values_of(first), _values_of(second)
    if a is None or b is None or a.shape != b.shape or not a.size:
        return None
    scale = np.linalg.norm(a, axis=1)
    distance = np.linalg.norm(a - b, axis=1)[scale > 0] / scale[scale > 0]
    return float(np.median(distance)) if distance.size and np.isfinite(distance).all() else None


def _values_of(sketch: str) -> NDArray[np.float32] | None:
    """Return the values of a sketch, (matrices, 8); None where it is damaged."""
    try:
        raw = base64.b64decode(sketch, validate=True)
        values = torch.frombuffer(bytearray(raw), dtype=torch.bfloat16).float().numpy()
        rows: NDArray[np.float32] = values.reshape(-1, SKETCH_VALUES)
    except (binascii.Error, ValueError):
        return None
    return rows


def _samples(model: PreTrainedModel, count: int) -> Iterator[tuple[str, tuple[int, ...], Tensor]]:
    """Yield name, shape and ``count`` evenly spaced values in bfloat16 of every parameter, sorted by name."""
    tied = getattr(model, "all_tied_weights_keys", {})
    for name, parameter in sorted(model.named_parameters()):
        if parameter.is_meta and name in tied:
            continue  # in memory a tied weight is listed once; Accelerate's offloading lists it twice
        module_name, _, parameter_name = name.rpartition(".")
        module = model.get_submodule(module_name)
        with align_module_device(module):  # temporarily loads offloaded weights
            values = getattr(module, parameter_name).detach().flatten()
            step = max(1, values.numel() // count)
            yield name, tuple(parameter.shape), values[::step][:count].to("cpu", torch.bfloat16)
