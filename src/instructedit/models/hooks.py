"""Forward hooks that are removed reliably, and the device that a module runs on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle


@contextmanager
def removed_on_exit(hook: RemovableHandle) -> Iterator[None]:
    """Remove a registered hook when the ``with`` block ends, also after an error."""
    try:
        yield
    finally:
        hook.remove()


def execution_device(module: nn.Module) -> torch.device:
    """Return the device that a module runs on, also if Accelerate has offloaded its weights."""
    parameter = next(module.parameters())
    if not parameter.is_meta:
        return parameter.device
    offload_hook = getattr(module, "_hf_hook")  # noqa: B009 - set by Accelerate; loads the weights for each forward
    hooks = getattr(offload_hook, "hooks", (offload_hook,))
    devices = [getattr(hook, "execution_device", None) for hook in hooks]
    return torch.device(next(device for device in devices if device is not None))
