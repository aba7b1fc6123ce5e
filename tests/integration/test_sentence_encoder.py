"""A sentence encoder of the user's makes the code: a tiny random BERT from a local folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from instructedit.editors.footprint import editor_parameters
from instructedit.editors.instructedit import InstructEdit
from instructedit.editors.mend import Mend
from instructedit.editors.saving import load_trained_editor, save_editor
from instructedit.errors import EditorError
from instructedit.models.language_model import LanguageModel
from instructedit.records import EditRequest

TEXTS = ["Task: Edit\nDescription: only this one", "Task: Edit\nDescription: everywhere"]


@pytest.fixture(scope="module")
def sentence_encoder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def editor(gpt2: LanguageModel, new_editor: Callable[..., Mend], sentence_encoder: Path) -> InstructEdit:
    made = new_editor(gpt2, name="instructedit", encoder="sentence", sentence_encoder=str(sentence_encoder))
    assert isinstance(made, InstructEdit)
    return made


def test_codes_differ_by_text_and_are_zero_without_one(gpt2: LanguageModel, editor: InstructEdit) -> None:
    request = EditRequest(prompt="Lena was born in", target="Oston")
    embeddings = editor.embeddings(gpt2, [request] * 3, [*TEXTS, None])
    assert embeddings is not None
    assert embeddings.shape == (3, editor.config.embedding_dim)
    assert not torch.allclose(embeddings[0], embeddings[1])
    assert torch.equal(embeddings[2], torch.zeros_like(embeddings[2]))


def test_the_users_encoder_is_neither_trained_nor_saved(
    gpt2: LanguageModel, editor: InstructEdit, requests_: list[EditRequest], tmp_path: Path
) -> None:
    assert not any("bert" in name or "embeddings" in name for name, _ in editor.named_parameters())
    save_editor(editor, gpt2, tmp_path / "editor.safetensors")
    again = load_trained_editor(tmp_path / "editor.safetensors", gpt2)
    texts = [TEXTS[0]] * len(requests_)
    first, second = (e.edit(gpt2, requests_, texts) for e in (editor, again))
    for name, low in first.factors.items():
        assert torch.equal(low.a, second.factors[name].a)
        assert torch.equal(low.b, second.factors[name].b)


def test_parameters_are_counted_without_the_users_encoder(gpt2: LanguageModel, editor: InstructEdit) -> None:
    assert editor_parameters(editor.config, gpt2) == sum(p.numel() for p in editor.parameters())


def test_a_missing_encoder_is_reported(gpt2: LanguageModel, new_editor: Callable[..., Mend], tmp_path: Path) -> None:
    with pytest.raises(EditorError, match="cannot load the sentence encoder"):
        new_editor(gpt2, name="instructedit", encoder="sentence", sentence_encoder=str(tmp_path / "nowhere"))
