"""The same functions in fewer passes over memory."""

from __future__ import annotations

from torch import nn
from transformers.activations import FastGELUActivation, NewGELUActivation


def fuse_activations_in_place(model: nn.Module) -> int:
    """Replace GELUs that are written out term by term by PyTorch's fused one; returns how many there were.

    Both are 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))); the fused one reads x once instead of eight times, and
    rounds otherwise in the last digit.
    """
    found = [
        (module, name)
        for module in model.modules()
        for name, child in module.named_children()
        if isinstance(child, (NewGELUActivation, FastGELUActivation))
    ]
    for module, name in found:
        setattr(module, name, nn.GELU(approximate="tanh"))
    return len(found)
