"""Which instructions want other subjects changed: fitted to those of training, saved with the editor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from instructedit.editors.gradient import create_editor, editor_config
from instructedit.editors.instructedit import InstructEdit
from instructedit.editors.saving import load_trained_editor, save_editor
from instructedit.models.language_model import LanguageModel
from instructedit.tasks.loading import load_task
from instructedit.training.reach import fit_reach
from instructedit.training.recipe import EncoderWarmup, InstructionNoise
from instructedit.training.warmup import warm_up_encoder

SHARE, SEED, NOISE = 0.5, 0, InstructionNoise(silent=0.1)
BOTH = [load_task("this-fact"), load_task("rename")]


@pytest.fixture
def editor(gpt2: LanguageModel) -> InstructEdit:
    """An editor whose encoder tells the two scopes apart."""
    torch.manual_seed(0)
    fields = {
        "encoder": "base",
        "blocks": 1,
        "rank": 8,
        "embedding_dim": 12,
        "contrast": True,
        "null_space": 2,
        "reach": 0.5,
    }
    editor = create_editor(editor_config(fields), gpt2)
    assert isinstance(editor, InstructEdit)
    assert editor.encoder is not None
    settings = EncoderWarmup(steps=80, batch=32, texts=200, learning_rate=5e-3)
    warm_up_encoder(editor.encoder, gpt2, BOTH, settings, SHARE, SEED)
    return editor.eval()


def reaching(editor: InstructEdit, model: LanguageModel, task: str) -> float:
    """The share of the task's own templates that count as reaching other subjects."""
    instructions = load_task(task).instructions
    texts = [instructions.render(text) for text in instructions.templates]
    assert editor.encoder is not None
    with torch.no_grad():
        wide = editor.reaches_others(editor.encoder(model, texts))
    assert wide is not None
    return wide.float().mean().item()


def test_instructions_that_want_other_subjects_changed_are_told_apart(
    editor: InstructEdit, gpt2: LanguageModel, tmp_path: Path
) -> None:
    assert reaching(editor, gpt2, "rename") == 0
    fit_reach(editor, gpt2, BOTH, SHARE, SEED, NOISE)
    assert reaching(editor, gpt2, "rename") > 0.8
    assert reaching(editor, gpt2, "this-fact") < 0.2
    assert editor.reaches_others(None) is None
    wide = editor.reaches_others(torch.zeros(1, 12))
    assert wide is not None
    assert not wide.any(), "no instruction reaches none"
    save_editor(editor, gpt2, tmp_path / "editor.safetensors")
    again = load_trained_editor(tmp_path / "editor.safetensors", gpt2)
    assert isinstance(again, InstructEdit)
    assert again.reach is not None
    assert editor.reach is not None
    assert torch.equal(again.reach, editor.reach)


def test_their_edits_have_no_null_space_and_another_size(editor: InstructEdit, gpt2: LanguageModel) -> None:
    fit_reach(editor, gpt2, BOTH, SHARE, SEED, NOISE)
    assert editor.encoder is not None
    texts = [load_task(t).instructions.render(load_task(t).instructions.templates[0]) for t in ("rename", "this-fact")]
    with torch.no_grad():
        rho = editor.null_spaces(editor.encoder(gpt2, texts))
        assert rho is not None
        assert (rho[0] == 0).all()
        assert (rho[1] > 0.5).all()
        sizes = editor.step_sizes(editor.encoder(gpt2, texts))
        editor.train()
        rho = editor.null_spaces(editor.encoder(gpt2, texts))
        assert rho is not None
        assert (rho > 0.5).all(), "not in training"
        trained = editor.step_sizes(editor.encoder(gpt2, texts))
    assert torch.allclose(sizes, trained * torch.tensor([[0.5], [1.0]]), rtol=1e-3)


def test_without_a_task_that_reaches_others_none_does(editor: InstructEdit, gpt2: LanguageModel) -> None:
    fit_reach(editor, gpt2, BOTH[:1], SHARE, SEED, NOISE)
    assert editor.reach is not None
    assert not editor.reach.any()
