"""The counted floor of a training edit against the operations that a step really does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from floor import floor
from speed import train_step
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from workload import SHAPES, Load, load_model, make_examples

from instructedit.editors.gradient import create_editor
from instructedit.editors.mend import MendConfig
from instructedit.training.loop import make_optimizer
from instructedit.training.recipe import Optimisation


class Counter(TorchDispatchMode):
    """Adds up the operations of matrix products."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            self.total += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=result)
        return result


@pytest.mark.parametrize("load", [Load(), Load(edit=20, target=2, stays=2, stay=12, answer=4)])
def test_floor_is_below_the_counted_operations_and_near(load: Load) -> None:
    batch, rank, blocks = 4, 32, 2
    model = load_model("tiny", torch.float32, "cpu")
    editor = create_editor(MendConfig(blocks=blocks, rank=rank), model).train()
    optimizer = make_optimizer(editor, Optimisation())
    examples = make_examples(batch, load, SHAPES["tiny"].vocabulary)
    with (
        model.cache_trunk(editor.split_layer, memory=10**8),
        Counter() as counter,
    ):
        train_step(editor, model, examples, optimizer)
    least = sum(floor("tiny", blocks, rank, load, batch)["operations"].values())
    counted = counter.total / batch
    assert 0.8 * counted < least <= counted
