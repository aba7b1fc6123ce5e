"""The encoder that reads the base model's hidden states."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from instructedit.editors.gradient import create_editor, editor_config
from instructedit.editors.instructedit import InstructEdit
from instructedit.editors.instruction_encoders import BaseStateEncoder
from instructedit.models.language_model import LanguageModel
from instructedit.records import EditRequest
from instructedit.tasks.loading import load_task
from instructedit.training.recipe import EncoderWarmup, InstructionNoise
from instructedit.training.warmup import warm_up_encoder

TEXTS = ["Task: Edit\nDescription: Only this one.", "Change it everywhere, for all subjects.", "Only"]


def encoder_of(model: LanguageModel, **settings: object) -> BaseStateEncoder:
    torch.manual_seed(0)
    fields = {"encoder": "base", "blocks": 1, "rank": 8, "embedding_dim": 12, **settings}
    editor = create_editor(editor_config(fields), model)
    assert isinstance(editor, InstructEdit)
    assert isinstance(editor.encoder, BaseStateEncoder)
    return editor.encoder.eval()


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_a_text_has_one_embedding_whatever_stands_beside_it(tiny: Callable[[str], LanguageModel], family: str) -> None:
    model = tiny(family)
    encoder = encoder_of(model)
    with torch.no_grad():
        together = encoder(model, [*TEXTS, None])
        alone = torch.cat([encoder(model, [text]) for text in TEXTS])
    assert together.shape == (4, 12)
    torch.testing.assert_close(together[:3], alone, rtol=1e-4, atol=1e-5)
    assert together.abs().max() < 1
    assert torch.equal(together[3], torch.zeros(12)), "no instruction leaves the hypernetwork as it is"
    assert (together[0] - together[1]).abs().max() > 1e-3


def test_after_training_a_text_is_read_once_and_by_itself(gpt2: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = encoder_of(gpt2)
    read: list[int] = []
    split = gpt2.split(encoder.block)
    trunk = split._trunk
    monkeypatch.setattr(split, "_trunk", lambda batch: read.append(len(batch)) or trunk(batch))
    with torch.no_grad():
        alone = encoder(gpt2, TEXTS[:1])
        together = encoder(gpt2, [*TEXTS, TEXTS[0]])
    assert read == [1, 1, 1]
    assert torch.equal(together[0], alone[0]), "bit for bit"
    with torch.no_grad():
        encoder.out.weight.mul_(2.0)
        changed = encoder(gpt2, TEXTS[:1])
    assert read == [1, 1, 1, 1], "the embeddings of other parameters are forgotten"
    assert not torch.equal(changed, alone)


def test_the_states_are_read_in_the_middle_and_never_in_an_edited_block(gpt2: LanguageModel) -> None:
    assert encoder_of(gpt2).block == 2  # of 4
    assert encoder_of(gpt2, encoder_block=1).block == 1
    assert encoder_of(gpt2, encoder_block=3).block == 3
    assert encoder_of(gpt2, blocks=3, encoder_block=3).block == 1
    with pytest.raises(ValueError, match="`encoder_block` needs `encoder: base`"):
        editor_config({"encoder_block": 1})


def test_it_learns_to_tell_scopes_and_reads_every_text_of_the_pool_once(
    gpt2: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = encoder_of(gpt2)
    tasks = [load_task(name) for name in ("this-fact", "rename")]
    read: list[int] = []
    split = gpt2.split(encoder.block)
    trunk = split._trunk
    monkeypatch.setattr(split, "_trunk", lambda batch: read.append(len(batch)) or trunk(batch))
    losses: list[float] = []
    warm_up_encoder(
        encoder, gpt2, tasks, EncoderWarmup(steps=150, batch=16, texts=24, learning_rate=3e-3), 0.5, 0,
        InstructionNoise(name=0.5, silent=0.2), lambda step, loss: losses.append(loss),
    )  # fmt: skip
    assert sum(read) <= 24
    assert sum(losses[-10:]) < 0.85 * sum(losses[:10])
    assert split.cache is None


def test_an_edit_depends_on_the_instruction_once_it_is_conditioned(gpt2: LanguageModel) -> None:
    torch.manual_seed(0)
    editor = create_editor(editor_config({"encoder": "base", "blocks": 2, "rank": 8, "embedding_dim": 12}), gpt2).eval()
    for name, parameter in editor.named_parameters():
        if name.endswith(("condition.weight", "up")):
            torch.nn.init.normal_(parameter, std=0.1)
    request = EditRequest(prompt="Lena was born in", target="Oston", subject="Lena")
    deltas = editor.edit(gpt2, [request, request], TEXTS[:2])
    first, second = deltas.norms().tolist()
    assert first != second
