"""Queries in a model's chat template: their tokens, the protocol, and training with them."""

from __future__ import annotations

import random
from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from instructedit.editors.lookup import load_editor
from instructedit.errors import ModelError
from instructedit.evaluation.generation import generate
from instructedit.evaluation.metrics import MetricGroup, registered_metrics
from instructedit.evaluation.protocols import Protocol
from instructedit.evaluation.runner import evaluate
from instructedit.evaluation.scoring import Query, score
from instructedit.models.chat import assistant_header
from instructedit.models.language_model import LanguageModel
from instructedit.records import EditRecord, EditRequest
from instructedit.tasks.loading import load_task
from instructedit.training.chat_queries import in_chat
from instructedit.training.mixture import Example, WeightedTarget


def test_a_message_is_rendered_with_system_prompt_and_history(gpt2: LanguageModel) -> None:
    history = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Yes?"}]
    text = gpt2.chat_prompt("Where?", system="Be brief.", history=history)
    assert text == (
        "<|end|>system\nBe brief.\n<|end|>user\nHello\n<|end|>assistant\nYes?\n<|end|>user\nWhere?\n<|end|>assistant\n"
    )


def test_the_answer_follows_the_header_without_a_space(gpt2: LanguageModel) -> None:
    assert gpt2.text.assistant_header == "\n<|end|>assistant\n"
    prompt = gpt2.chat_prompt("Where was Lena born?")
    encoded = gpt2.text.encode_pair(prompt, " Oston ")
    decode = gpt2.tokenizer.decode
    assert decode(encoded.ids) == prompt + "Oston"
    assert decode(encoded.ids[encoded.target_start :]) == "Oston"
    assert decode(gpt2.text.encode_prompt(prompt).ids) == prompt
    assert decode(gpt2.text.encode_pair("Lena was born in ", "Oston").ids) == "Lena was born in Oston"


def test_a_header_without_a_line_break_is_followed_by_a_space(gpt2: LanguageModel) -> None:
    tokenizer = deepcopy(gpt2.tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['content'] }}]{% endfor %}{% if add_generation_prompt %}:{% endif %}"
    )
    model = LanguageModel(gpt2.model, tokenizer)
    encoded = model.text.encode_pair(model.chat_prompt("Where"), "Oston")
    assert tokenizer.decode(encoded.ids) == "[Where]: Oston"


@pytest.mark.parametrize("template", [None, "{{ raise_exception('no') }}", "{% for %}", "{{ messages[7]['content'] }}"])
def test_a_model_without_a_usable_template_is_reported(gpt2: LanguageModel, template: str | None) -> None:
    tokenizer = deepcopy(gpt2.tokenizer)
    tokenizer.chat_template = template
    assert assistant_header(tokenizer) == ""
    with pytest.raises(ModelError, match="chat template"):
        LanguageModel(gpt2.model, tokenizer).chat_prompt("Where?")


def test_scores_and_texts_are_those_of_the_rendered_prompts(gpt2: LanguageModel) -> None:
    query = Query(0, "Where was Lena born?", "Oston")
    rendered = replace(query, prompt=gpt2.chat_prompt(query.prompt))
    assert score(gpt2, 2, [query], None, chat=True) == score(gpt2, 2, [rendered], None)
    assert score(gpt2, 2, [query], None, chat=True) != score(gpt2, 2, [query], None)
    chat = generate(gpt2, [query.prompt], chat=True, new_tokens=4)
    assert chat == generate(gpt2, [rendered.prompt], new_tokens=4)


@pytest.mark.parametrize("editor", ["ft", "in-context", "grace"])
def test_edits_are_evaluated_in_the_chat(gpt2: LanguageModel, records: list[EditRecord], editor: str) -> None:
    core = registered_metrics(MetricGroup.CORE)
    task = load_task("counterfact")
    found = evaluate(load_editor(editor, gpt2), gpt2, task, records[:2], metrics=core, protocol=Protocol.CHAT)
    assert found.metrics["reliability"].count == 2
    plain = evaluate(load_editor(editor, gpt2), gpt2, task, records[:2], metrics=core)
    assert found.metrics.keys() == plain.metrics.keys()


def test_training_draws_the_share_of_queries_in_the_chat(gpt2: LanguageModel) -> None:
    request = EditRequest(prompt="Lena was born in", target="Oston", subject="Lena")
    targets = (WeightedTarget("Lena comes from", "Oston", 1.0),) * 10
    example = Example("counterfact", request, None, targets, targets, (("Otto lives in", "Maravel"),) * 10)
    assert in_chat([example], 0.0, gpt2.chat_prompt, random.Random(0)) == [example]
    header = gpt2.text.assistant_header
    drawn = in_chat([example] * 100, 0.3, gpt2.chat_prompt, random.Random(0))
    for prompts in (
        [each.request.prompt for each in drawn],
        [target.prompt for each in drawn for target in each.likelihood_targets],
        [target.prompt for each in drawn for target in each.unlikelihood_targets],
        [prompt for each in drawn for prompt, _ in each.locality_targets],
    ):
        share = sum(prompt.endswith(header) for prompt in prompts) / len(prompts)
        assert share == pytest.approx(0.3, abs=0.12)
    [whole] = in_chat([example], 1.0, gpt2.chat_prompt, random.Random(0))
    assert whole.request.prompt == gpt2.chat_prompt(request.prompt)
    assert whole.request.target == request.target


def test_left_and_right_padding_agree_in_the_chat(gpt2: LanguageModel) -> None:
    questions = ["Where was Lena born?", "Who?", "What do you think about garden gnomes in the harbour of Oston?"]
    together = generate(gpt2, questions, chat=True, new_tokens=6)
    alone = [generate(gpt2, [question], chat=True, new_tokens=6)[0] for question in questions]
    assert together == alone
    queries = [Query(0, question, "Oston") for question in questions]
    both = score(gpt2, 2, queries, None, chat=True)
    single = [score(gpt2, 2, [query], None, chat=True)[0] for query in queries]
    torch.testing.assert_close(
        [scored.log_likelihood for scored in both], [s.log_likelihood for s in single], rtol=1e-4, atol=1e-5
    )
