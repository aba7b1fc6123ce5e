"""Fingerprint of a model's weights."""

from __future__ import annotations

import hashlib

import torch
from accelerate.utils.modeling import align_module_device
from transformers import PreTrainedModel


@torch.no_grad()
def weights_fingerprint(model: PreTrainedModel, samples: int = 64) -> str:
    """Return a fingerprint of the weights: 16 hexadecimal digits of a SHA-256.

    The digest covers the name, shape and ``samples`` evenly spaced values of every parameter. The values are rounded to
    bfloat16, so that a checkpoint and its bfloat16 copy have the same fingerprint: a delta fits both.
    """
    digest = hashlib.sha256()
    tied = getattr(model, "all_tied_weights_keys", {})
    for name, parameter in sorted(model.named_parameters()):
        if parameter.is_meta and name in tied:
            continue  # in memory a tied weight is listed once; Accelerate's offloading lists it twice
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        module_name, _, parameter_name = name.rpartition(".")
        module = model.get_submodule(module_name)
        with align_module_device(module):  # temporarily loads offloaded weights
            values = getattr(module, parameter_name).detach().flatten()
            step = max(1, values.numel() // samples)
            digest.update(values[::step][:samples].to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]
