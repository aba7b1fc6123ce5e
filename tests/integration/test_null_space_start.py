"""Where the strength of the null space starts."""

from __future__ import annotations

import pytest
import torch

from instructedit.editors.gradient import create_editor, editor_config
from instructedit.editors.instructedit import InstructEdit
from instructedit.models.language_model import LanguageModel
from instructedit.tasks.loading import load_task
from instructedit.training.null_space_start import start_null_space
from instructedit.training.recipe import EncoderWarmup, InstructionNoise
from instructedit.training.warmup import warm_up_encoder

SHARE, SEED, NOISE = 0.5, 0, InstructionNoise(silent=0.1)
BOTH = [load_task("this-fact"), load_task("rename")]


@pytest.fixture
def editor(gpt2: LanguageModel) -> InstructEdit:
    """An editor whose encoder tells the two scopes apart."""
    torch.manual_seed(0)
    fields = {"encoder": "base", "blocks": 1, "rank": 8, "embedding_dim": 12, "contrast": True, "null_space": 2}
    editor = create_editor(editor_config(fields), gpt2)
    assert isinstance(editor, InstructEdit)
    assert editor.encoder is not None
    settings = EncoderWarmup(steps=80, batch=32, texts=200, learning_rate=5e-3)
    warm_up_encoder(editor.encoder, gpt2, BOTH, settings, SHARE, SEED)
    return editor.eval()


@torch.no_grad()
def strength(editor: InstructEdit, model: LanguageModel, task: str) -> float:
    """The mean rho of the task's own templates."""
    assert editor.encoder is not None
    instructions = load_task(task).instructions
    texts = [instructions.render(text) for text in instructions.templates]
    rho = editor.null_spaces(editor.encoder(model, texts))
    assert rho is not None
    return rho.mean().item()


def test_it_starts_low_for_instructions_that_reach_other_subjects(editor: InstructEdit, gpt2: LanguageModel) -> None:
    before = strength(editor, gpt2, "this-fact"), strength(editor, gpt2, "rename")
    assert before[0] == before[1]
    start_null_space(editor, gpt2, BOTH, SHARE, SEED, NOISE)
    assert strength(editor, gpt2, "this-fact") > 0.75
    assert strength(editor, gpt2, "rename") < 0.35
    without = editor.null_spaces(None)
    assert without is not None
    assert without.min().item() == pytest.approx(before[0]), "no instruction, no change"


def test_what_has_been_learned_stays(editor: InstructEdit, gpt2: LanguageModel) -> None:
    assert editor.null_space_condition is not None
    weight = editor.null_space_condition.weight
    start_null_space(editor, gpt2, BOTH[:1], SHARE, SEED, NOISE)
    assert not weight.any(), "no scope reaches other subjects"
    with torch.no_grad():
        weight[0, 0] = 0.1
    start_null_space(editor, gpt2, BOTH, SHARE, SEED, NOISE)
    assert weight.sum().item() == pytest.approx(0.1)
