"""Checkpoints of a run in safetensors and JSON: weights, optimisers' state and progress, nothing pickled.

What a step draws depends on the seed and the step's number alone, so no random state has to be kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from instructedit.errors import CheckpointError, DataError
from instructedit.storage.reading import parse_json
from instructedit.storage.tensors import pack, unpack
from instructedit.storage.writing import write_atomically

FORMAT = "instructedit-checkpoint/3"


def save_checkpoint(
    path: Path,
    module: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    progress: Mapping[str, Any],
    recipe: Mapping[str, Any],
) -> None:
    """Write everything that a run needs to go on, in one file that is either whole or not there.

    Args:
        progress: where the run stands; JSON values.
        recipe: what the run was told; JSON values.
    """
    tensors = {f"module.{name}": tensor for name, tensor in module.state_dict().items()}
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{index}.{key}": torch.as_tensor(value) for key, value in state.items()}
    header = {"format": FORMAT, "progress": json.dumps(progress), "recipe": json.dumps(recipe, sort_keys=True)}
    # Weights that are tied share their memory, which safetensors refuses; each name gets its own.
    copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
    write_atomically(path, pack(copies, header))


def load_checkpoint(
    path: Path, module: nn.Module, optimizers: Sequence[torch.optim.Optimizer], recipe: Mapping[str, Any]
) -> dict[str, Any]:
    """Put a checkpoint's state into a module and its optimisers, in place; returns the progress.

    Raises:
        CheckpointError: damaged, or written under another recipe.
    """
    header, tensors = unpack(path, FORMAT, "a checkpoint", CheckpointError)
    try:
        written_under, progress = parse_json(header["recipe"]), parse_json(header["progress"])
    except (KeyError, DataError) as error:
        raise CheckpointError(f"file {path}: its header is damaged: {error}") from None
    if written_under != json.loads(json.dumps(recipe)):
        raise CheckpointError(
            f"file {path}: was written under another recipe; give another --out, or delete the folder to start anew"
        )
    if not isinstance(progress, dict):
        raise CheckpointError(f"file {path}: its header is damaged: the progress is no object")
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


def _state(
    tensors: Mapping[str, Tensor], number: int, optimizer: torch.optim.Optimizer
) -> dict[int, dict[str, Tensor]]:
    """An optimiser's state by parameter.

    Raises:
        ValueError: a tensor belongs to no parameter of it, has another shape or is no float, or one is missing.
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
    every = {key for values in state.values() for key in values}
    for place, values in state.items():
        if values.keys() != every:
            raise ValueError(f"optimizer.{number}.{place} lacks {', '.join(sorted(every - values.keys()))}")
        if any(not tensor.ndim and key != "step" and parameters[place].ndim for key, tensor in values.items()):
            raise ValueError(f"optimizer.{number}.{place} has another shape")
    return state
