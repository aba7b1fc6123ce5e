"""Greedy decoding is greedy, whatever a checkpoint's own generation settings are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig

from instructedit.evaluation.generation import generate
from instructedit.models.language_model import LanguageModel, load_language_model

PROMPTS = ["Lena was born in", "The old lighthouse of", "Why"]


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.8},
        {"no_repeat_ngram_size": 1},
        {"do_sample": True, "temperature": 5.0, "top_k": 3},
        {"num_beams": 3, "length_penalty": 2.0},
        {"max_length": 3},
        {"min_new_tokens": 9, "exponential_decay_length_penalty": (1, 3.0)},
        {"bad_words_ids": [[index] for index in range(1, 300)]},
        {"suppress_tokens": list(range(1, 300))},
        {"forced_eos_token_id": 5},
        {"stop_strings": ["a", "e", "i"]},
        {"num_return_sequences": 2, "do_sample": True},
        {"use_cache": False, "return_dict_in_generate": True, "output_scores": True},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_a_checkpoints_own_settings_change_nothing(
    gpt2: LanguageModel, own_gpt2: LanguageModel, settings: dict[str, object]
) -> None:
    expected = generate(gpt2, PROMPTS, new_tokens=8)
    own_gpt2.model.generation_config = GenerationConfig(eos_token_id=0, bos_token_id=0, pad_token_id=0, **settings)
    own = own_gpt2.model.generation_config
    assert generate(own_gpt2, PROMPTS, new_tokens=8) == expected
    assert own_gpt2.model.generation_config is own


def test_settings_of_the_checkpoints_file_change_nothing(
    gpt2: LanguageModel, own_gpt2: LanguageModel, tmp_path: Path
) -> None:
    own_gpt2.model.generation_config.repetition_penalty = 1.8
    own_gpt2.model.save_pretrained(tmp_path)
    own_gpt2.tokenizer.save_pretrained(tmp_path)
    loaded = load_language_model(tmp_path)
    assert loaded.model.generation_config.repetition_penalty == 1.8
    assert generate(loaded, PROMPTS) == generate(gpt2, PROMPTS)


def test_the_end_token_of_the_checkpoint_ends_a_text(gpt2: LanguageModel, own_gpt2: LanguageModel) -> None:
    batch = gpt2.text.encode_prompt(PROMPTS[0])
    with torch.no_grad():
        first = int(gpt2.model(torch.tensor([batch.ids])).logits[0, -1].argmax())
    own_gpt2.model.generation_config.eos_token_id = [0, first]
    (text,) = generate(own_gpt2, PROMPTS[:1], new_tokens=8)
    assert text == gpt2.tokenizer.decode([first])


def test_every_family_generates(family: str, any_model: LanguageModel, tiny: Callable[[str], LanguageModel]) -> None:
    found = generate(any_model, PROMPTS, new_tokens=4)
    assert len(found) == len(PROMPTS)
    assert found == generate(any_model, PROMPTS, new_tokens=4, batch_size=1)
