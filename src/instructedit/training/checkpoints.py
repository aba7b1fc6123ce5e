"""Checkpoints in safetensors and JSON: parameters, optimiser state and the step, nothing pickled.

What a step draws depends on the seed and the step's number alone, so no random state has to be kept.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from instructedit.editors.gradient import GradientEditor
from instructedit.errors import EditorError
from instructedit.files import write_atomically

FORMAT = "instructedit-checkpoint/1"


@dataclass(frozen=True)
class Progress:
    """Where a run stands: steps done, and the best validation so far."""

    step: int
    best_loss: float
    best_step: int


def save_checkpoint(
    path: Path, editor: GradientEditor, optimizer: torch.optim.Optimizer, progress: Progress, recipe: dict[str, Any]
) -> None:
    """Write everything that a run needs to go on, in one file that is either whole or not there."""
    tensors = {f"editor.{name}": tensor for name, tensor in editor.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in state.items()}
    header = {
        "format": FORMAT,
        "step": str(progress.step),
        "best_loss": repr(progress.best_loss),
        "best_step": str(progress.best_step),
        "recipe": json.dumps(recipe, sort_keys=True),
    }
    write_atomically(path, save({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, header))


def load_checkpoint(
    path: Path, editor: GradientEditor, optimizer: torch.optim.Optimizer, recipe: dict[str, Any]
) -> Progress:
    """Put a checkpoint's state into an editor and its optimiser, in place.

    Raises:
        EditorError: damaged, or written under another recipe.
    """
    try:
        with safe_open(str(path), framework="pt") as stored:
            header = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise EditorError(f"file {path}: cannot be read as a checkpoint: {error}") from None
    if header.get("format") != FORMAT:
        raise EditorError(f"file {path}: is not a checkpoint")
    if json.loads(header["recipe"]) != json.loads(json.dumps(recipe)):
        raise EditorError(
            f"file {path}: was written under another recipe; give another --out, or delete the folder to start anew"
        )
    editor.load_state_dict({n.removeprefix("editor."): t for n, t in tensors.items() if n.startswith("editor.")})
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return Progress(int(header["step"]), float(header["best_loss"]), int(header["best_step"]))
