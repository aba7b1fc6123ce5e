"""Batches of tokenised documents.

Each row is a single document, so a query meets the model as in training: at position 0, with nothing else in its
context. Most rows have a loss on the answer only; a share of them has it on every token, which keeps the model able to
write whole sentences.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from instructedit.base_model.corpus import Document
from instructedit.base_model.recipe import BaseModelSettings
from instructedit.models.text import join_prompt_and_target, with_period


class Rows:
    """Tokenised documents in batches of about equal padded size, each of rows of one length.

    Args:
        tokenizer: The base model's.
        settings: Batch size, and shares of rows of each kind.
    """

    LENGTHS = (10, 12, 14, 16, 18, 20, 24, 28, 34, 44, 60, 90, 140)

    def __init__(self, tokenizer: PreTrainedTokenizerFast, settings: BaseModelSettings) -> None:
        self.tokenizer = tokenizer
        self.settings = settings
        self.end = int(tokenizer.eos_token_id)

    def batches(self, documents: Sequence[Document], seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield (ids, labels, positions), each (rows, length); labels are -100 where there is no loss.

        Args:
            documents: Documents that are too long are left out.
            seed: Decides the order of batches and the kind of each row.
        """
        rng = random.Random(seed)
        pairs = [join_prompt_and_target(document.prompt, with_period(document.answer)) for document in documents]
        prompts = self.tokenizer([prompt for prompt, _ in pairs])["input_ids"]
        answers = self.tokenizer([answer for _, answer in pairs])["input_ids"]
        lengths = [length for length in self.LENGTHS if length <= self.settings.positions]
        buckets: dict[int, list[tuple[list[int], int]]] = {length: [] for length in lengths}
        for document, prompt, answer in zip(documents, prompts, answers, strict=True):
            ids = [*prompt, *answer, self.end]
            length = next((length for length in lengths if len(ids) <= length), None)
            if length is not None:
                buckets[length].append((ids, len(prompt) + document.given_tokens))
        batches = []
        for length, rows in buckets.items():
            size = max(1, self.settings.batch_tokens // length)
            batches += [(length, rows[start : start + size]) for start in range(0, len(rows), size)]
        rng.shuffle(batches)
        for length, rows in batches:
            yield self._collate(rows, length, rng)

    def _collate(
        self, rows: Sequence[tuple[list[int], int]], length: int, rng: random.Random
    ) -> tuple[Tensor, Tensor, Tensor]:
        ids = torch.full((len(rows), length), self.end)
        labels = torch.full((len(rows), length), -100)
        starts = torch.zeros(len(rows), dtype=torch.long)
        for row, (tokens, prompt_length) in enumerate(rows):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            first = 1 if rng.random() < self.settings.whole_text_share else prompt_length
            labels[row, first - 1 : len(tokens) - 1] = ids[row, first : len(tokens)]
            if rng.random() < self.settings.shifted_share:
                starts[row] = rng.randrange(self.settings.positions - length + 1)
        return ids, labels, starts[:, None] + torch.arange(length)
