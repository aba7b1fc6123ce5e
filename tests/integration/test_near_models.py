"""Editors and deltas on the same model in another precision: accepted with the distance; on other models: refused."""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from instructedit.deltas.delta import Delta
from instructedit.deltas.saving import load_delta, save_delta
from instructedit.editors.gradient import create_editor, editor_config
from instructedit.editors.saving import load_trained_editor, save_editor
from instructedit.errors import DeltaError, EditorError
from instructedit.merging.combining import make_edit
from instructedit.models import near
from instructedit.models.fingerprint import sketch_distance
from instructedit.models.language_model import LanguageModel
from instructedit.records import EditRequest
from instructedit.tasks.loading import load_task


def changed(model: LanguageModel, change: Callable[[torch.Tensor], torch.Tensor]) -> LanguageModel:
    """Return a copy of a model with every matrix changed."""
    weights = deepcopy(model.model)
    with torch.no_grad():
        for parameter in weights.parameters():
            if parameter.ndim > 1:
                parameter.copy_(change(parameter))
    return LanguageModel(weights, model.tokenizer, "a copy")


def quantised(weight: torch.Tensor) -> torch.Tensor:
    """Return a matrix with 15 values a row, as 4-bit formats have."""
    scale = weight.abs().amax(-1, keepdim=True) / 7
    return (weight / scale).round() * scale


@pytest.fixture(autouse=True)
def _warn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "_warned", set())


@pytest.fixture
def llama(tiny: Callable[[str], LanguageModel]) -> LanguageModel:
    return tiny("llama")


@pytest.fixture
def delta(llama: LanguageModel, requests_: list[EditRequest]) -> Delta:
    editor = create_editor(editor_config({"name": "mend", "blocks": 2, "rank": 8}), llama)
    return make_edit(editor, llama, requests_[:1], load_task("counterfact"))


def test_a_delta_fits_a_quantised_copy_with_a_warning_of_the_distance(
    llama: LanguageModel, delta: Delta, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_delta(delta, tmp_path / "edit.safetensors")
    copy = changed(llama, quantised)
    assert copy.fingerprint != llama.fingerprint
    assert copy.architecture == llama.architecture
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            with load_delta(tmp_path / "edit.safetensors").attached(copy):
                pass
    [record] = caplog.records
    distance = copy.distance_to(llama.architecture, llama.sketch)
    assert distance is not None
    assert 0.01 < distance < 0.2
    assert f"{100 * distance:.1f}% away" in record.message


def test_an_editor_fits_a_quantised_copy(
    llama: LanguageModel, tmp_path: Path, caplog: pytest.LogCaptureFixture, requests_: list[EditRequest]
) -> None:
    editor = create_editor(editor_config({"name": "mend", "blocks": 2, "rank": 8}), llama)
    save_editor(editor, llama, tmp_path / "editor.safetensors")
    copy = changed(llama, quantised)
    with caplog.at_level(logging.WARNING):
        loaded = load_trained_editor(tmp_path / "editor.safetensors", copy)
    assert "the same model with other weights" in caplog.text
    assert make_edit(loaded, copy, requests_[:1], load_task("counterfact")).metadata.base == copy.fingerprint


def test_other_weights_are_refused(llama: LanguageModel, delta: Delta) -> None:
    torch.manual_seed(1)
    other = changed(llama, lambda weight: torch.randn_like(weight) * weight.std())
    with pytest.raises(DeltaError, match="was made for the base model"):
        delta.check(other)


@pytest.mark.parametrize(
    "sketch", ["", "no base64!", base64.b64encode(b"abc").decode(), base64.b64encode(b"ab" * 8).decode()]
)
def test_without_a_sketch_other_precisions_are_refused(llama: LanguageModel, delta: Delta, sketch: str) -> None:
    unknown = Delta(delta.factors, delta.metadata.model_copy(update={"sketch": sketch}))
    unknown.check(llama)
    with pytest.raises(DeltaError, match="was made for the base model"):
        unknown.check(changed(llama, quantised))


def test_another_architecture_or_vocabulary_is_refused(
    llama: LanguageModel, delta: Delta, tiny: Callable[[str], LanguageModel], tmp_path: Path
) -> None:
    assert tiny("mistral").architecture != tiny("gpt2").architecture
    tokenizer = deepcopy(llama.tokenizer)
    save_editor(create_editor(editor_config({"name": "mend"}), llama), llama, tmp_path / "editor.safetensors")
    tokenizer.add_tokens(["<|new|>"], special_tokens=True)
    assert LanguageModel(llama.model, tokenizer).architecture == llama.architecture
    with pytest.raises(EditorError, match="was trained for the base model"):
        load_trained_editor(tmp_path / "editor.safetensors", tiny("qwen2"))


def test_the_distance_is_relative_and_zero_for_equal_weights(llama: LanguageModel) -> None:
    assert sketch_distance(llama.sketch, llama.sketch) == 0
    doubled = changed(llama, lambda weight: 2 * weight).sketch
    assert sketch_distance(llama.sketch, doubled) == pytest.approx(1.0)
