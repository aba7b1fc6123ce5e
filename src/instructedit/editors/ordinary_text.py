"""Ordinary text, which no edit is about: sentences about facts, and what a base model writes by itself."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from instructedit.assets import read_yaml
from instructedit.data.facts import shipped_facts
from instructedit.models.decoding import decoding
from instructedit.models.language_model import LanguageModel
from instructedit.models.text import Encoded, pad
from instructedit.storage.cached_tensors import cached_tensor, keep_tensor

#: Texts after questions, after questions in the chat template, and after openings; and new tokens of each, at most.
QUESTIONS, CHATS, PROSE, NEW_TOKENS = 64, 64, 256, 48
#: First words of a text about anything.
OPENINGS = (
    "The", "A", "In", "When", "I", "We", "It", "This", "If", "After", "She", "He", "They", "Most", "To", "There",
)  # fmt: skip
#: Texts that are written at a time.
BATCH = 64
#: Tokens of a start and its continuation, at most; what is longer is cut.
LENGTH = 96
_NO_TOKEN = -1
#: Called with the number of texts that are written, and that of all.
OnText = Callable[[int, int], None]


def fact_sentences(count: int, seed: int = 0) -> list[str]:
    """Return ``count`` sentences about the facts that ship with the package; fewer if there are fewer facts."""
    rng = random.Random(seed)
    facts = shipped_facts()
    return [fact.sentence(rng) for fact in rng.sample(facts, min(count, len(facts)))]


def written_texts(
    language_model: LanguageModel, seed: int = 0, on_text: OnText = lambda written, texts: None
) -> list[Encoded]:
    """Return what a base model writes by itself: samples, at temperature 1, of how it goes on.

    It goes on after questions about all sorts of things, also in its chat template if it has one, and after the first
    word of a text. Every token of a text but the first counts as a label. The texts are written once for a base model
    and kept in the cache folder.

    Args:
        language_model: the base model.
        seed: of the samples.
        on_text: see :data:`OnText`; not called for texts from the cache.
    """
    starts = _starts(language_model, seed)
    digest = hashlib.sha256(repr(starts).encode()).hexdigest()[:16]
    file = f"written/{language_model.fingerprint}-{digest}-{seed}.safetensors"
    rows = cached_tensor(file, (len(starts), LENGTH))
    if rows is None:
        rows = _write(language_model, starts, seed, on_text)
        keep_tensor(file, rows, "texts that the model wrote")
    texts = [tuple(int(token) for token in row if token != _NO_TOKEN) for row in rows]
    return [Encoded(ids, 1) for ids in texts if len(ids) > 1]


def _starts(language_model: LanguageModel, seed: int) -> list[Encoded]:
    rng = random.Random(seed)
    questions = [question for question, _ in read_yaml("unrelated_questions.yaml")["questions"]]
    plain, chats = rng.sample(questions, QUESTIONS), rng.sample(questions, CHATS)
    chat = [language_model.chat_prompt(question) for question in chats] if language_model.text.assistant_header else []
    prose = [OPENINGS[index % len(OPENINGS)] for index in range(PROSE)]
    starts = [language_model.text.encode_prompt(text) for text in (*plain, *chat, *prose)]
    return sorted(starts, key=lambda start: len(start.ids))


@torch.no_grad()
def _write(language_model: LanguageModel, starts: Sequence[Encoded], seed: int, on_text: OnText) -> Tensor:
    """Return starts and continuations, (texts, :data:`LENGTH`), with -1 where a text has ended."""
    rows = torch.full((len(starts), LENGTH), _NO_TOKEN)
    model, pad_id = language_model.model, language_model.text.pad_id
    longest = min(LENGTH, language_model.text.max_length)
    new_tokens = max(1, min(NEW_TOKENS, longest - len(starts[-1].ids)))
    devices = [language_model.device] if language_model.device.type == "cuda" else []
    with (
        language_model.lock,
        torch.random.fork_rng(devices),
        decoding(language_model, new_tokens, sample=True) as drawn,
    ):
        torch.manual_seed(seed)
        for first in range(0, len(starts), BATCH):
            on_text(first, len(starts))
            batch = pad(starts[first : first + BATCH], pad_id, side="left").to(language_model.device)
            out = model.generate(input_ids=batch.ids, attention_mask=batch.mask.long(), generation_config=drawn)
            ends = _end_tokens(drawn.eos_token_id)
            for index, (row, start) in enumerate(zip(out, starts[first:], strict=False), start=first):
                new = row[batch.ids.shape[1] :].tolist()
                length = next((i + 1 for i, token in enumerate(new) if token in ends), len(new))
                ids = [*start.ids, *new[:length]][:longest]
                rows[index, : len(ids)] = torch.tensor(ids)
        on_text(len(starts), len(starts))
    return rows


def _end_tokens(ids: int | list[int] | None) -> set[int]:
    return set() if ids is None else {ids} if isinstance(ids, int) else set(ids)
