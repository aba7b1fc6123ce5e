"""The operations and bytes that a training edit cannot do without: the floor under every measured time.

Counted for a GPT-2 or Llama shape: two operations a multiply-add; a matrix costs 2 * inputs * outputs a token
forward and as much again for the gradient of its input. Attention between so few tokens is left out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from workload import SHAPES, Load

from instructedit.models.structure import find_structure, linear_shape


def _operations(block: nn.Module) -> int:
    """Forward operations a token."""
    shapes = [linear_shape(module) for module in block.modules()]
    return sum(2 * shape[0] * shape[1] for shape in shapes if shape is not None)


def floor(shape: str, blocks: int, rank: int, load: Load, batch: int) -> dict[str, Any]:
    """Operations and bytes of one training edit, by part.

    Bytes are the weights that have to be read and the optimiser state that has to be read and written once a
    batch, in float32, shared by its edits.
    """
    with torch.device("meta"):  # shapes without weights
        model = SHAPES[shape].build()
    structure = find_structure(model)
    matrices = structure.last_mlps(blocks)
    one, depth = _operations(model.get_submodule(structure.blocks[0])), len(structure.blocks)
    head = 2 * structure.hidden * model.config.vocab_size
    stay_tokens = load.stays * load.stay
    labels = load.target + load.stays * load.answer
    # In the last block only positions that predict a target have a gradient; below it, all up to the last of them.
    last = {matrix.name for matrix in structure.last_mlps(1)}
    signals = {m.name: load.target if m.name in last else load.edit - 1 for m in matrices}
    hypernetwork = 0
    for matrix in matrices:
        width = matrix.inputs + matrix.outputs
        hypernetwork += signals[matrix.name] * 2 * (2 * 2 * width * min(rank, width))  # two layers, U and V
    delta = sum(2 * (load.edit + stay_tokens) * signals[m.name] * (m.inputs + m.outputs) for m in matrices)
    # Nothing below the lowest edited matrix is differentiated: of its block only the way back through the last one is.
    lowest = structure.last_mlps(blocks)[: len(matrices) // blocks]
    down = sum(2 * m.inputs * m.outputs for m in lowest if m.outputs == structure.hidden)
    backward = (blocks - 1) * one + down
    operations = {
        "trunk": (depth - blocks) * one * (load.edit + stay_tokens),
        "signals": (blocks * one + backward) * load.edit + 2 * head * load.target,
        "hypernetwork": 3 * hypernetwork,
        "edited top": (blocks * one + backward) * (load.edit + stay_tokens) + 2 * head * labels,
        "unedited top": blocks * one * stay_tokens + head * load.stays * load.answer,
        "deltas": 3 * delta,
    }
    parameters = sum(p.numel() for p in model.parameters())
    shapes = {(m.inputs, m.outputs) for m in matrices}
    editor = sum(2 * 2 * (i + o) * min(rank, i + o) for i, o in shapes)
    bytes_read = {"base weights": 4 * parameters / batch, "editor, gradient and Adam": 4 * editor * 7 / batch}
    return {
        "batch": batch,
        "operations": operations,
        "gigaflop": round(sum(operations.values()) / 1e9, 2),
        "bytes": {name: round(value) for name, value in bytes_read.items()},
    }
