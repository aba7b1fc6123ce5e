"""What the speed benchmarks run on: random-weight models of published shapes, and edits of exact token counts."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers import PreTrainedTokenizerFast as FastTokenizer

from instructedit.models.language_model import LanguageModel
from instructedit.records import EditRequest
from instructedit.training.mixture import Example, WeightedTarget


@dataclass(frozen=True)
class Shape:
    """A published model's shape.

    Attributes:
        build: a model of it with random weights.
        vocabulary: tokens.
    """

    build: Callable[[], PreTrainedModel]
    vocabulary: int


def _gpt2(blocks: int, width: int, heads: int) -> Callable[[], PreTrainedModel]:
    return lambda: GPT2LMHeadModel(
        GPT2Config(n_layer=blocks, n_embd=width, n_head=heads, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    )


def _smollm2() -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=49_152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            tie_word_embeddings=True,
        )
    )


SHAPES = {
    "tiny": Shape(_gpt2(4, 64, 4), 50_257),
    "gpt2": Shape(_gpt2(12, 768, 12), 50_257),
    "gpt2-xl": Shape(_gpt2(48, 1600, 25), 50_257),
    "smollm2-135m": Shape(_smollm2, 49_152),
    "llama-7b": Shape(lambda: LlamaForCausalLM(LlamaConfig()), 32_000),
}


@dataclass(frozen=True)
class Load:
    """Token counts of one training edit.

    Attributes:
        edit: tokens of prompt and target together.
        target: of them the target's.
        subject: of them the subject's, at the beginning.
        instruction: tokens of the instruction, for an editor that reads one.
        stays: locality prompts.
        stay: tokens of each, answer included.
        answer: of them the answer's.
    """

    edit: int = 48
    target: int = 3
    subject: int = 2
    instruction: int = 40
    stays: int = 4
    stay: int = 16
    answer: int = 3


def load_model(shape: str, dtype: torch.dtype, device: str) -> LanguageModel:
    """A model with random weights whose tokens are the words "1", "2", …: a text's length is exact."""
    torch.manual_seed(0)
    found = SHAPES[shape]
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = found.build()
    finally:
        torch.set_default_dtype(before)
    if device == "cpu":
        model.config._attn_implementation = "eager"  # as `load_language_model` chooses
    words = Tokenizer(
        models.WordLevel({"<end>": 0} | {str(n): n for n in range(1, found.vocabulary)}, unk_token="<end>")
    )
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = FastTokenizer(tokenizer_object=words, eos_token="<end>", pad_token="<end>")
    return LanguageModel(model, tokenizer, shape)


def make_examples(count: int, load: Load, vocabulary: int, seed: int = 0) -> list[Example]:
    """Random edits: one wanted continuation and ``load.stays`` locality prompts each."""
    rng = random.Random(seed)

    def words(number: int) -> str:
        return " ".join(str(rng.randrange(1, vocabulary)) for _ in range(number))

    found = []
    for _ in range(count):
        prompt = words(load.edit - load.target)
        subject = " ".join(prompt.split()[: load.subject])
        request = EditRequest(prompt=prompt, target=words(load.target), subject=subject)
        stay = tuple((words(load.stay - load.answer), words(load.answer)) for _ in range(load.stays))
        wanted = WeightedTarget(request.prompt, request.target, 1.0)
        found.append(Example("random", request, words(load.instruction), (wanted,), (), stay))
    return found
