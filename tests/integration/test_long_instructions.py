"""An instruction that an encoder does not read whole is refused; every one that ships is read whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast

from instructedit.assets import ASSETS, read_yaml
from instructedit.editors.instruction_encoders import TrainedEncoder
from instructedit.editors.mend import Mend
from instructedit.instructions.grammar import Grammar, parts_of, scope_grammar
from instructedit.instructions.templates import NEUTRAL_NAME, held_out_templates
from instructedit.models.language_model import BUNDLED_FOLDER, LanguageModel
from instructedit.records import EditRequest
from instructedit.tasks.loading import shipped_tasks

REQUEST = EditRequest(prompt="Lena was born in", target="Oston")
#: Tokens that an editor trained with the default encoder reads.
LENGTH = TrainedEncoder(8).length


@pytest.fixture(scope="module")
def short_encoder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A sentence encoder of 24 positions."""
    folder = tmp_path_factory.mktemp("short")
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=24, **shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("encoder", "limit"), [("trained", LENGTH), ("sentence", 24)])
def test_an_instruction_that_does_not_fit_is_cut_with_a_warning(
    gpt2: LanguageModel,
    new_editor: Callable[..., Mend],
    short_encoder: Path,
    encoder: str,
    limit: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    own = {"sentence_encoder": str(short_encoder)} if encoder == "sentence" else {}
    editor = new_editor(gpt2, encoder=encoder, **own)
    one = len(gpt2.tokenizer("&")["input_ids"])
    fits = "&" * (limit // one)
    assert editor.edit(gpt2, [REQUEST], [fits]).factors
    assert editor.edit(gpt2, [REQUEST], [fits + "&" * 5]).factors
    assert f"this editor uses only the first {limit}" in caplog.text


def slots_longest(text: str, grammar: Grammar, length: Callable[[str], int]) -> str:
    """A frame with each slot filled by its longest text: at least about as long as any that is drawn."""
    while "{" in text:
        name = text[text.index("{") + 1 : text.index("}")]
        longest = max((slots_longest(choice, grammar, length) for choice in grammar.slots[name]), key=length)
        text = text.replace("{" + name + "}", longest)
    return text


def longest_template(scope: str, grammar: Grammar, length: Callable[[str], int]) -> str:
    """The longest text that the grammar can draw for a scope."""
    texts = list(grammar.texts.get(scope, ()))
    texts += [slots_longest(frame, grammar, length) for frame in grammar.frames.get(scope, ())]
    if len(parts_of(scope)) > 1:
        texts.append(" ".join(longest_template(part, grammar, length) for part in parts_of(scope)))
    return max(texts, key=length)


def every_text(found: Any) -> Iterator[str]:
    """Every string of a YAML file."""
    if isinstance(found, str):
        yield found
    elif isinstance(found, (dict, list)):
        for part in found.values() if isinstance(found, dict) else found:
            yield from every_text(part)


def test_every_text_that_ships_is_read_whole() -> None:
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_FOLDER)

    def length(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    grammar = scope_grammar()
    request = EditRequest(prompt="a", target="b", subject="the Parliament of the United Kingdom", label="positive")
    for task in shipped_tasks().values():
        instructions = task.instructions
        texts = [instructions.render(description, request) for description in instructions.all_templates]
        if instructions.scope is not None:
            longest = longest_template(instructions.scope, grammar, length)
            texts += [instructions.render(longest, request, name) for name in (None, NEUTRAL_NAME)]
        for kind in ("validation", "test"):
            texts += [
                instructions.render(text, request)
                for text in held_out_templates(kind).get(instructions.scope or "", ())
            ]
        for text in texts:
            assert length(text) <= LENGTH, (task.name, length(text), text)
    for folder in ("instructions", "templates"):
        for file in (ASSETS / folder).rglob("*.yaml"):
            for text in every_text(read_yaml(str(file.relative_to(ASSETS)))):
                assert length(text) <= LENGTH, (file, text)


def test_a_text_as_long_as_is_read_keeps_its_code(gpt2: LanguageModel) -> None:
    """The last token counts as the others do."""
    encoder = TrainedEncoder(8).eval()
    one, other = ("&" * (LENGTH - 1) + end for end in "!?")
    with torch.no_grad():
        embeddings = encoder(gpt2, [one, other])
    assert not torch.equal(embeddings[0], embeddings[1])
