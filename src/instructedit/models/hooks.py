"""Hooks that are always taken away again, and where a module runs that they are put on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle


@contextmanager
def held(hook: RemovableHandle) -> Iterator[None]:
    """Keep a registered hook for the duration of the ``with``."""
    try:
        yield
    finally:
        hook.remove()


def device_of(module: nn.Module) -> torch.device:
    """Where a module runs, wherever its weights are kept."""
    parameter = next(module.parameters())
    if not parameter.is_meta:
        return parameter.device
    hook = getattr(module, "_hf_hook")  # noqa: B009 - Accelerate's, which brings the weights in for a call
    found = [getattr(one, "execution_device", None) for one in getattr(hook, "hooks", (hook,))]
    return torch.device(next(device for device in found if device is not None))
