"""A base model spread over devices, with parts left on disk, edits and evaluates as one in memory."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from instructedit.cli.app import app
from instructedit.data.pool import RecordPool
from instructedit.deltas.saving import load_delta, save_delta
from instructedit.editors.mend import Mend
from instructedit.editors.saving import load_trained_editor, save_editor
from instructedit.errors import DeltaError
from instructedit.evaluation.protocols import Protocol
from instructedit.evaluation.runner import evaluate
from instructedit.merging.combining import make_edit
from instructedit.models.language_model import LanguageModel, load_language_model
from instructedit.records import EditRecord
from instructedit.tasks.loading import load_task
from instructedit.training.mixture import Source, draw_batch
from instructedit.training.objective import loss_and_backward
from instructedit.training.recipe import Objective


def spread(language_model: LanguageModel) -> dict[str, str]:
    """The second and fourth block on disk, the rest in memory."""
    structure = language_model.structure
    disk = {structure.blocks[1], structure.blocks[3]}
    covered = {*structure.blocks}
    placed = {name: "disk" if name in disk else "cpu" for name in structure.blocks}
    for name, _ in language_model.model.named_parameters():
        if not any(name.startswith(block + ".") for block in covered):
            placed[name.rpartition(".")[0]] = "cpu"
    for name, _ in language_model.model.named_buffers():
        if not any(name.startswith(block + ".") for block in covered):
            placed[name.rpartition(".")[0]] = "cpu"
    placed[structure.head] = "cpu"
    return placed


@pytest.fixture(scope="module")
def offloaded(any_model: LanguageModel, family: str, checkpoint: Callable[[str], Path]) -> LanguageModel:
    return load_language_model(checkpoint(family), device_map=spread(any_model))


def test_parts_are_really_on_disk_and_the_model_is_the_same(offloaded: LanguageModel, any_model: LanguageModel) -> None:
    where = {parameter.is_meta for parameter in offloaded.model.parameters()}
    assert where == {True, False}
    assert offloaded.fingerprint == any_model.fingerprint
    assert offloaded.device == torch.device("cpu")


@pytest.mark.parametrize("protocol", [Protocol.PLAIN, Protocol.GENERATION])
def test_evaluation_is_equal(
    offloaded: LanguageModel,
    any_model: LanguageModel,
    new_editor: Callable[..., Mend],
    records: list[EditRecord],
    protocol: Protocol,
) -> None:
    found = [
        evaluate(new_editor(model), model, load_task("rename"), records[:4], protocol=protocol).records
        for model in (any_model, offloaded)
    ]
    assert found[0].keys() == found[1].keys()
    for name, row in found[0].items():
        assert found[1][name] == pytest.approx(row, rel=1e-5, abs=1e-5)


def test_training_gradients_are_equal(
    offloaded: LanguageModel,
    any_model: LanguageModel,
    new_editor: Callable[..., Mend],
    records: list[EditRecord],
) -> None:
    source = Source(load_task("rename"), RecordPool(records))
    examples = draw_batch([source], [1.0], 4, Objective(), 0.5, random.Random(0))
    gradients = []
    for model in (any_model, offloaded):
        editor = new_editor(model)
        deltas = editor(model, [e.request for e in examples], [e.instruction for e in examples])
        loss_and_backward(editor, model, deltas, examples, Objective())
        gradients.append({name: p.grad for name, p in editor.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-5)


def test_a_delta_travels_and_merging_into_what_is_on_disk_is_refused(
    offloaded: LanguageModel,
    any_model: LanguageModel,
    new_editor: Callable[..., Mend],
    records: list[EditRecord],
    tmp_path: Path,
) -> None:
    request = records[0].request
    made = make_edit(new_editor(offloaded), offloaded, [request], load_task("counterfact"))
    save_delta(made, tmp_path / "e.safetensors")
    load_delta(tmp_path / "e.safetensors").check(any_model)
    with pytest.raises(DeltaError, match="is offloaded"):
        made.merge_into(offloaded)


def test_the_command_takes_a_placement(
    checkpoint: Callable[[str], Path], gpt2: LanguageModel, new_editor: Callable[..., Mend], tmp_path: Path
) -> None:
    editor = tmp_path / "editor.safetensors"
    save_editor(new_editor(gpt2), gpt2, editor)
    options = ["--model", str(checkpoint("gpt2")), "--editor", str(editor), "--task", "counterfact", "--json", "-"]
    what = ["--subject", "Lena", "--prompt", "Lena was born in", "--target", "Oston", "--ask", "Lena was born in"]
    answers = []
    for placement in ([], ["--device-map", json.dumps(spread(gpt2))]):
        result = CliRunner().invoke(app, ["edit", *options, *what, *placement])
        assert result.exit_code == 0, result.output
        answers.append(json.loads(result.stdout)["answers"])
    assert answers[0] == answers[1]
    wrong = CliRunner().invoke(app, ["edit", *options, *what, "--device-map", "{not json"])
    assert wrong.exit_code == 2
    assert load_trained_editor(editor, gpt2).config.blocks == 2
