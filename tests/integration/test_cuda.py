"""Edits, scores and training losses on a GPU are those of the CPU, to the precision of float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from instructedit.editors.mend import Mend
from instructedit.evaluation.runner import evaluate
from instructedit.merging.combining import make_edit
from instructedit.models.language_model import load_language_model
from instructedit.records import EditRecord, EditRequest
from instructedit.tasks.loading import load_task

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DEVICES = ("cpu", "cuda")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_edit_on_the_gpu_is_the_one_on_the_cpu(
    family: str,
    checkpoint: Callable[[str], Path],
    new_editor: Callable[..., Mend],
    requests_: list[EditRequest],
) -> None:
    deltas = []
    for device in DEVICES:
        model = load_language_model(checkpoint(family), device=device)
        deltas.append(make_edit(new_editor(model).to(device), model, requests_, "counterfact", combine="sum"))
    for name, factors in deltas[0].factors.items():
        expected = factors.dense()
        error = (deltas[1].factors[name].dense().cpu() - expected).norm()
        assert error < 1e-4 * expected.norm(), name


def test_an_evaluation_on_the_gpu_is_the_one_on_the_cpu(
    checkpoint: Callable[[str], Path], new_editor: Callable[..., Mend], records: list[EditRecord]
) -> None:
    scores = []
    for device in DEVICES:
        model = load_language_model(checkpoint("gpt2"), device=device)
        result = evaluate(new_editor(model).to(device), model, load_task("counterfact"), records[:4])
        scores.append({name: value.mean for name, value in result.metrics.items()})
    assert scores[1] == pytest.approx(scores[0], rel=1e-3, abs=1e-3)
