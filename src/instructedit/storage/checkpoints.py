"""Checkpoints of a run in safetensors and JSON: weights, optimiser state and progress, nothing pickled.

The draws of a step depend on the seed and the step's number alone, so no random state is saved.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from instructedit.errors import CheckpointError, DataError, shorten
from instructedit.storage.reading import parse_json
from instructedit.storage.tensors import pack, unpack
from instructedit.storage.writing import write_atomically

FORMAT = "instructedit-checkpoint/4"
#: So many differing settings a message names.
MAX_DIFFERENCES = 3


def save_checkpoint(
    path: Path,
    module: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    progress: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> None:
    """Write all that a run needs to resume, in one file that is either complete or not there.

    Args:
        path: The file.
        module: Whose parameters and buffers are written.
        optimizers: Whose state is written.
        progress: How far the run is; JSON values.
        settings: All settings that decide the run; JSON values.

    Raises:
        DataError: The file cannot be written.
    """
    tensors = {f"module.{name}": tensor for name, tensor in module.state_dict().items()}
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{index}.{key}": torch.as_tensor(value) for key, value in state.items()}
    header = {"format": FORMAT, "progress": json.dumps(progress), "settings": json.dumps(settings, sort_keys=True)}
    # Tied weights share memory, which safetensors refuses; each name gets its own copy.
    copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
    write_atomically(path, pack(copies, header))


def load_checkpoint(
    path: Path, module: nn.Module, optimizers: Sequence[torch.optim.Optimizer], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Restore a module and its optimisers, in place.

    Args:
        path: The file.
        module: Gets the parameters and buffers.
        optimizers: Get their state.
        settings: Of this run; those of the checkpoint must be the same.

    Returns:
        The progress that was saved.

    Raises:
        CheckpointError: The file is damaged, or was written under other settings; the first that differ are named.
    """
    header, tensors = unpack(path, FORMAT, "a checkpoint", CheckpointError)
    try:
        written_under, progress = parse_json(header["settings"]), parse_json(header["progress"])
    except (KeyError, DataError) as error:
        raise CheckpointError(f"file {path}: its header is damaged: {error}") from None
    differences = list(_differences(written_under, json.loads(json.dumps(settings))))
    if differences:
        raise CheckpointError(
            f"file {path}: was written under another recipe ({'; '.join(differences[:MAX_DIFFERENCES])}); give another "
            "--out, or delete the folder to start again"
        )
    if not isinstance(progress, dict):
        raise CheckpointError(f"file {path}: its header is damaged: the progress is not a mapping")
    try:
        module.load_state_dict({n.removeprefix("module."): t for n, t in tensors.items() if n.startswith("module.")})
        for number, optimizer in enumerate(optimizers):
            optimizer.load_state_dict(
                {"state": _state(tensors, number, optimizer), "param_groups": optimizer.state_dict()["param_groups"]}
            )
    except (RuntimeError, ValueError, KeyError) as error:
        first_line = str(error).splitlines()[0]
        raise CheckpointError(f"file {path}: its tensors are not those of this run: {first_line}") from None
    return progress


def _differences(written: Any, current: Any, place: str = "") -> Iterator[str]:
    """Yield, in words, where the settings of a checkpoint differ from those of a run."""
    if isinstance(written, dict) and isinstance(current, dict):
        for key in sorted(written.keys() | current.keys()):
            here = f"{place}.{key}" if place else key
            if key not in written:
                yield f"{here}: this version's setting is not in the checkpoint"
            elif key not in current:
                yield f"{here}: the checkpoint's setting is not known to this version"
            else:
                yield from _differences(written[key], current[key], here)
    elif written != current:
        yield f"{place or 'settings'}: {shorten(json.dumps(written))} there, {shorten(json.dumps(current))} now"


def _state(
    tensors: Mapping[str, Tensor], number: int, optimizer: torch.optim.Optimizer
) -> dict[int, dict[str, Tensor]]:
    """Return an optimiser's state by index of the parameter.

    Raises:
        ValueError: A tensor belongs to no parameter, has the wrong shape or dtype, or is missing.
    """
    state: dict[int, dict[str, Tensor]] = {}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, tensor in tensors.items():
        if not name.startswith(f"optimizer.{number}."):
            continue
        _, _, index, key = name.split(".", 3)
        if not index.isdecimal() or int(index) >= len(parameters):
            raise ValueError(f"{name} belongs to no parameter")
        if tensor.ndim and tensor.shape != parameters[int(index)].shape:
            raise ValueError(f"{name} has the shape {tuple(tensor.shape)}")
        if not tensor.is_floating_point():
            raise ValueError(f"{name} is {tensor.dtype}")
        if key == "step" and tensor.ndim:
            raise ValueError(f"{name} has the shape {tuple(tensor.shape)}")
        state.setdefault(int(index), {})[key] = tensor
    all_keys = {key for values in state.values() for key in values}
    for position, values in state.items():
        if values.keys() != all_keys:
            raise ValueError(f"optimizer.{number}.{position} lacks {', '.join(sorted(all_keys - values.keys()))}")
        if any(not tensor.ndim and key != "step" and parameters[position].ndim for key, tensor in values.items()):
            raise ValueError(f"optimizer.{number}.{position} has another shape")
    return state
