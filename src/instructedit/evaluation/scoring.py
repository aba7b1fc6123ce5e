"""Teacher-forced scoring: the model's predictions at the answer positions of many queries."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from instructedit.editors.base import Edits
from instructedit.models.language_model import LanguageModel
from instructedit.models.text import pad


@dataclass(frozen=True)
class Query:
    """An answer after a prompt, for the model with one edit.

    Attributes:
        edit: row of the edit in its batch; ignored by the unedited model.
        prompt: text before the answer.
        answer: text whose tokens are scored.
    """

    edit: int
    prompt: str
    answer: str


@dataclass(frozen=True)
class Scored:
    """The predictions for one query, each conditioned on the prompt and the answer's earlier tokens.

    Attributes:
        predicted: the most likely token at each position of the answer.
        token_accuracy: share of positions where that is the answer's token.
        log_likelihood: mean log probability of the answer's tokens, in nats.
    """

    predicted: tuple[int, ...]
    token_accuracy: float
    log_likelihood: float

    def agreement(self, other: Scored) -> float:
        """Return the share of positions where both have the same most likely token."""
        same = [token == other_token for token, other_token in zip(self.predicted, other.predicted, strict=True)]
        return sum(same) / len(same)


@torch.no_grad()
def score(
    language_model: LanguageModel,
    split_layer: int,
    queries: Sequence[Query],
    edits: Edits | None,
    *,
    chat: bool = False,
    tokens: int = 4096,
) -> list[Scored]:
    """Score queries in batches, sorted by length.

    Args:
        language_model: the base model.
        split_layer: block at which the forward pass is split; blocks below it carry no delta.
        queries: in any order.
        edits: the edits by row, each attached for its own queries; None scores the unedited model.
        chat: put every prompt into the model's chat template.
        tokens: padded tokens in a batch, at most; a longer query is a batch of its own.

    Returns:
        The scores, in the order of the queries.
    """
    prompts = [query.prompt if edits is None else edits.rewrite_prompt(query.edit, query.prompt) for query in queries]
    if chat:
        prompts = [language_model.chat_prompt(prompt) for prompt in prompts]
    encoded = [
        language_model.text.encode_pair(text, query.answer) for text, query in zip(prompts, queries, strict=True)
    ]
    order = sorted(range(len(queries)), key=lambda index: len(encoded[index].ids))
    split = language_model.split(split_layer)
    scores: dict[int, Scored] = {}
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and (end + 1 - start) * len(encoded[order[end]].ids) <= tokens:
            end += 1
        chosen = order[start:end]
        batch = pad([encoded[index] for index in chosen], language_model.text.pad_id).to(language_model.device)
        rows = torch.tensor([queries[index].edit for index in chosen], device=language_model.device)
        with language_model.lock:  # no other thread's edit comes between
            state = split.trunk(batch)
            with edits.attached(language_model, rows) if edits is not None else nullcontext():
                logits = split.top(state).float()
        best = logits.max(-1).indices  # twice as fast as argmax on a CPU
        likelihood = logits.gather(1, batch.labels[:, None])[:, 0] - logits.logsumexp(-1)
        counts = torch.bincount(batch.rows, minlength=len(chosen)).tolist()
        for index, predicted, labels, values in zip(
            chosen, best.split(counts), batch.labels.split(counts), likelihood.split(counts), strict=True
        ):
            scores[index] = Scored(
                tuple(predicted.tolist()), (predicted == labels).float().mean().item(), values.mean().item()
            )
        start = end
    return [scores[index] for index in range(len(queries))]
