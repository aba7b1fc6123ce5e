"""Checkpoints of a run in safetensors and JSON: weights, optimisers' state and progress, nothing pickled.

What a step draws depends on the seed and the step's number alone, so no random state has to be kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from instructedit.errors import CheckpointError
from instructedit.files import write_atomically

FORMAT = "instructedit-checkpoint/2"


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
    copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(copies, header))


def load_checkpoint(
    path: Path, module: nn.Module, optimizers: Sequence[torch.optim.Optimizer], recipe: Mapping[str, Any]
) -> dict[str, Any]:
    """Put a checkpoint's state into a module and its optimisers, in place; returns the progress.

    Raises:
        CheckpointError: damaged, or written under another recipe.
    """
    try:
        with safe_open(str(path), framework="pt") as stored:
            header = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"file {path}: cannot be read as a checkpoint: {error}") from None
    if header.get("format") != FORMAT:
        raise CheckpointError(f"file {path}: is not a checkpoint of this version; delete it to start anew")
    if json.loads(header["recipe"]) != json.loads(json.dumps(recipe)):
        raise CheckpointError(
            f"file {path}: was written under another recipe; give another --out, or delete the folder to start anew"
        )
    module.load_state_dict({n.removeprefix("module."): t for n, t in tensors.items() if n.startswith("module.")})
    for number, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith(f"optimizer.{number}."):
                _, _, index, key = name.split(".", 3)
                state.setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    found: dict[str, Any] = json.loads(header["progress"])
    return found
