"""Further training of an instruction encoder: misread texts are corrected, the others keep their embeddings."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from instructedit.editors.instruction_encoders import BaseStateEncoder, InstructionEncoder
from instructedit.errors import DataError
from instructedit.models.language_model import LanguageModel
from instructedit.tasks.loading import free_text_task, load_task
from instructedit.training.encoder_update import update_encoder
from instructedit.training.mixture import NO_NOISE
from instructedit.training.recipe import EncoderUpdate, EncoderWarmup, InstructionNoise
from instructedit.training.warmup import warm_up_encoder

SHARE, SEED = 0.5, 0
BOTH = [load_task("this-fact"), load_task("rename")]
#: Short and foreign templates, which the encoder has not met before its update.
KINDS = InstructionNoise(kinds=0.5, misspelt=0.2)
SETTINGS = EncoderUpdate(steps=300, batch=64, texts=150, learning_rate=5e-3)


@pytest.fixture
def encoder(gpt2: LanguageModel) -> InstructionEncoder:
    """An encoder that tells two scopes apart in whole sentences."""
    torch.manual_seed(0)
    encoder = BaseStateEncoder(12, hidden=gpt2.model.config.hidden_size, block=2)
    warm_up_encoder(encoder, gpt2, BOTH, EncoderWarmup(steps=80, batch=32, texts=200, learning_rate=5e-3), SHARE, SEED)
    return encoder.requires_grad_(False).eval()


@torch.no_grad()
def embeddings(encoder: InstructionEncoder, model: LanguageModel, texts: list[str]) -> Tensor:
    """The embeddings of texts behind the neutral name."""
    bank = free_text_task().instructions
    return encoder.eval()(model, [bank.render(text, name="Edit") for text in texts])


def test_what_was_misread_is_read_right(encoder: InstructionEncoder, gpt2: LanguageModel) -> None:
    losses: list[float] = []
    before, after = update_encoder(
        encoder, gpt2, BOTH, SETTINGS, SHARE, SEED, KINDS, lambda step, loss: losses.append(loss)
    )
    assert len(losses) == SETTINGS.steps
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
    assert before < 0.85
    assert after > 0.88
    assert not any(parameter.requires_grad for parameter in encoder.parameters()), "frozen as before"


@pytest.mark.parametrize("scope", ["only", "everywhere"])
def test_a_scope_without_a_task_is_read_like_the_one_that_is_named(
    encoder: InstructionEncoder, gpt2: LanguageModel, scope: str
) -> None:
    settings = SETTINGS.model_copy(update={"read_as": {"forget": scope}})
    before, after = update_encoder(encoder, gpt2, BOTH, settings, SHARE, SEED, NO_NOISE)
    assert before < 0.85
    assert after > 0.88


def test_it_repeats_and_depends_on_the_seed(encoder: InstructionEncoder, gpt2: LanguageModel) -> None:
    state = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    few = SETTINGS.model_copy(update={"steps": 5, "texts": 60})
    results = []
    for seed in (0, 0, 1):
        encoder.load_state_dict(state)
        update_encoder(encoder, gpt2, BOTH, few, SHARE, seed, KINDS)
        results.append(embeddings(encoder, gpt2, ["Only this."]))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_an_unknown_scope_is_reported(encoder: InstructionEncoder, gpt2: LanguageModel) -> None:
    for read_as, message in (({"forget": "tone"}, "has the scope 'tone'"), ({"qqq": "only"}, "no scope 'qqq'")):
        settings = SETTINGS.model_copy(update={"read_as": read_as})
        with pytest.raises(DataError, match=message):
            update_encoder(encoder, gpt2, BOTH, settings, SHARE, SEED, NO_NOISE)
