"""Checks of the devices and device maps that a user gives."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from instructedit.errors import ModelError

#: Strategies of Accelerate that compute a device map.
DEVICE_MAP_STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")


def check_device(device: str) -> None:
    """Raise an error if a device does not exist.

    Raises:
        ModelError: the name is unknown, or this machine has no such device.
    """
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise ModelError(f"device {device!r} is unknown; use cpu, cuda, cuda:1, … or auto") from None
    if kind == "meta":
        raise ModelError("device 'meta' stores no values; use cpu, cuda, cuda:1, … or auto")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ModelError(
            f"device {device!r} is not available: PyTorch finds no GPU here; leave --device out for the CPU"
        )
    if kind == "cuda" and (torch.device(device).index or 0) >= torch.cuda.device_count():
        raise ModelError(
            f"device {device!r} is not available: this machine has {torch.cuda.device_count()} GPU(s), numbered from "
            "cuda:0"
        )


def check_device_map(device_map: str | Mapping[str, str | int], model: nn.Module) -> None:
    """Raise an error if a device map names a module or device that does not exist.

    Args:
        device_map: a strategy of :data:`DEVICE_MAP_STRATEGIES`, a device, or a device for each module name.
        model: the model to place; it may be on the meta device.

    Raises:
        ModelError: a module or device is unknown.
    """
    if isinstance(device_map, str):
        if device_map not in DEVICE_MAP_STRATEGIES:
            check_device(device_map)
        return
    known = {name for name, _ in (*model.named_modules(), *model.named_parameters(), *model.named_buffers())}
    unknown = sorted(str(name) for name in device_map if name not in known)
    if unknown:
        raise ModelError(
            f"the device map names {', '.join(unknown[:5])}, which the model does not have; its top-level modules are "
            f"{', '.join(name for name, _ in model.named_children())}"
        )
    for name, device in device_map.items():
        if device == "disk":
            continue
        if isinstance(device, bool) or not isinstance(device, (str, int)):
            raise ModelError(f"the device map puts {name!r} on {device!r}; use a device name, a GPU number or disk")
        check_device(f"cuda:{device}" if isinstance(device, int) else device)
