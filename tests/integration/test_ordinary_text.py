"""Ordinary text that a model writes by itself."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch

from instructedit.editors.ordinary_text import CHATS, LENGTH, fact_sentences, written_texts
from instructedit.models.language_model import LanguageModel


def test_a_model_writes_the_same_text_every_time(
    gpt2: LanguageModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("INSTRUCTEDIT_CACHE", str(tmp_path / "first"))
    own = gpt2.model.generation_config
    torch.manual_seed(5)
    state = torch.get_rng_state()
    progress: list[tuple[int, int]] = []
    first = written_texts(gpt2, on_text=lambda written, texts: progress.append((written, texts)))
    assert progress[0] == (0, len(first))
    assert progress[-1] == (len(first), len(first))
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers are not touched"
    assert gpt2.model.generation_config is own
    assert written_texts(gpt2, on_text=lambda written, texts: pytest.fail("not from the cache")) == first
    monkeypatch.setenv("INSTRUCTEDIT_CACHE", str(tmp_path / "second"))
    assert written_texts(gpt2) == first, "written again"
    assert written_texts(gpt2, seed=1) != first


def test_texts_are_whole_and_every_token_but_the_first_is_a_label(gpt2: LanguageModel) -> None:
    texts = written_texts(gpt2)
    assert {text.target_start for text in texts} == {1}
    assert all(2 <= len(text.ids) <= LENGTH for text in texts)
    assert len(set(texts)) > len(texts) / 2, "sampled, so hardly two are the same"


def test_a_chat_model_also_writes_answers_in_its_template(gpt2: LanguageModel) -> None:
    tokenizer = deepcopy(gpt2.tokenizer)
    tokenizer.chat_template = None
    plain = LanguageModel(gpt2.model, tokenizer)
    assert len(written_texts(gpt2)) == len(written_texts(plain)) + CHATS


def test_sentences_are_drawn_by_their_seed() -> None:
    assert fact_sentences(5) == fact_sentences(5)
    assert fact_sentences(5) != fact_sentences(5, seed=1)
    assert len(fact_sentences(5)) == 5
