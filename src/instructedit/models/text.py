"""Tokenization of prompts and targets, padding, and label masks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from instructedit.errors import DataError
from instructedit.models.chat import assistant_header

#: Number of queries whose tokens a :class:`TextEncoder` caches; the least recently used are evicted first.
MAX_CACHED_TEXTS = 100_000


def join_prompt_and_target(prompt: str, target: str) -> tuple[str, str]:
    """Return prompt and target such that their concatenation has exactly one space between them.

    The space belongs to the target. Data sets disagree on this, and the position of the space decides the tokens of a
    byte-level vocabulary.
    """
    return prompt.rstrip(), " " + target.strip()


def with_period(answer: str) -> str:
    """Return the answer with a full stop, unless it already ends in ``.``, ``!`` or ``?``."""
    return answer if answer.rstrip()[-1:] in ".!?" else answer.rstrip() + "."


@dataclass(frozen=True)
class Encoded:
    """A tokenized query.

    Attributes:
        ids: token ids of prompt and target.
        target_start: index of the first target token; ``len(ids)`` if there is no target.
    """

    ids: tuple[int, ...]
    target_start: int


class TextEncoder:
    """Tokenizer of prompts and targets with a cache of the last :data:`MAX_CACHED_TEXTS` queries.

    Args:
        tokenizer: any Hugging Face tokenizer.
        max_length: maximum sequence length of the base model in tokens.
        embeddings: number of rows of the model's embedding; larger token ids are rejected. None skips the check.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, *, embeddings: int | None = None) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.embeddings = embeddings
        #: What a prompt in the chat template ends with; such a prompt is tokenized as it is.
        self.assistant_header = assistant_header(tokenizer)
        self._lock = Lock()  # neither fast tokenizers nor the cache are thread-safe
        self._cache: OrderedDict[tuple[str, str], Encoded] = OrderedDict()

    @property
    def pad_id(self) -> int:
        """Padding token id. Any valid id works, because padding is always masked."""
        for name in ("pad_token_id", "eos_token_id"):
            token_id = getattr(self.tokenizer, name)
            # A padding token that was added to the tokenizer but not to the model has no embedding.
            if token_id is not None and (self.embeddings is None or token_id < self.embeddings):
                return int(token_id)
        return 0

    def encode_prompt(self, prompt: str) -> Encoded:
        """Tokenize a prompt without a target.

        Raises:
            DataError: the prompt has no tokens, is too long for the model, or contains a token without an embedding.
        """
        return self._encode(prompt if self._is_chat(prompt) else prompt.rstrip(), "")

    def encode_pair(self, prompt: str, target: str) -> Encoded:
        """Tokenize a prompt followed by a target.

        Raises:
            DataError: prompt or target has no tokens, the sequence is too long for the model, or it contains a token
                without an embedding.
        """
        if not target.strip():
            raise DataError(f"the target of the prompt {prompt!r} is blank; give at least one word", field="target")
        if self._is_chat(prompt):
            space = "" if prompt[-1].isspace() else " "
            return self._encode(prompt, space + target.strip())
        return self._encode(*join_prompt_and_target(prompt, target))

    def _is_chat(self, prompt: str) -> bool:
        return bool(self.assistant_header) and prompt.endswith(self.assistant_header)

    def _encode(self, prompt: str, target: str) -> Encoded:
        key = (prompt, target)
        with self._lock:
            if key not in self._cache:
                self._cache[key] = self._tokenize(prompt, target)
                if len(self._cache) > MAX_CACHED_TEXTS:
                    self._cache.popitem(last=False)
            self._cache.move_to_end(key)
            return self._cache[key]

    def _tokenize(self, prompt: str, target: str) -> Encoded:
        special = not self._is_chat(prompt)  # the chat template has its own
        if self.tokenizer.is_fast:
            # Prompt and target are tokenized as one text, as in normal use of the model. A token belongs to the
            # target if it ends after the prompt's last character.
            encoding = self.tokenizer(prompt + target, return_offsets_mapping=True, add_special_tokens=special)
            ids = list(encoding["input_ids"])
            ends = [end for _, end in encoding["offset_mapping"]]
            start = next((i for i, end in enumerate(ends) if end > len(prompt)), len(ids))
        else:
            ids = list(self.tokenizer(prompt + target, add_special_tokens=special)["input_ids"])
            start = min(len(self.tokenizer(prompt, add_special_tokens=special)["input_ids"]), len(ids))
        self._check(ids, start, prompt, target)
        return Encoded(tuple(ids), start)

    def _check(self, ids: Sequence[int], start: int, prompt: str, target: str) -> None:
        if not ids:
            raise DataError("the prompt is blank; give at least one word", field="prompt")
        if target and start == len(ids):
            raise DataError(
                f"the tokenizer gives no tokens for the target {target.strip()!r} after the prompt {prompt!r}; choose "
                "another spelling",
                field="target",
            )
        if target and start == 0:
            raise DataError(
                f"the tokenizer gives no tokens for the prompt {prompt!r} before the target; give at least one word",
                field="prompt",
            )
        if len(ids) > self.max_length:
            raise DataError(
                f"{len(ids)} tokens, but the model takes at most {self.max_length}: shorten {prompt[:60] + '…'!r}",
                field="prompt",
            )
        if self.embeddings is not None and max(ids) >= self.embeddings:
            token = self.tokenizer.convert_ids_to_tokens(max(ids))
            raise DataError(
                f"the token {token!r} has id {max(ids)}, but the model's embedding has only {self.embeddings} rows: "
                "remove it from the text",
                field="prompt",
            )


@dataclass(frozen=True)
class TokenBatch:
    """A batch of padded queries.

    Attributes:
        ids: (rows, length) token ids.
        mask: (rows, length) True at tokens, False at padding.
        predicts: (rows, length) True where the NEXT token is a target token. Only the logits at these positions are
            computed. Labels are aligned by this mask alone, so the padding side does not matter.
        labels: (predicted,) the target token of every True in ``predicts``, in row-major order.
        rows: (predicted,) the batch row of every label.
    """

    ids: Tensor
    mask: Tensor
    predicts: Tensor
    labels: Tensor
    rows: Tensor

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.ids.shape[0]

    @property
    def positions(self) -> Tensor:
        """Position of each token in its text, (rows, length); undefined at padding."""
        return (self.mask.long().cumsum(1) - 1).clamp_min(0)

    def to(self, device: torch.device | str) -> TokenBatch:
        """Return the batch on another device."""
        return TokenBatch(*(t.to(device) for t in (self.ids, self.mask, self.predicts, self.labels, self.rows)))

    def split(self, rows: int) -> tuple[TokenBatch, TokenBatch]:
        """Return the first rows and the others; both keep the padding."""
        first = self.rows < rows
        ids, mask, predicts = self.ids, self.mask, self.predicts
        return (
            TokenBatch(ids[:rows], mask[:rows], predicts[:rows], self.labels[first], self.rows[first]),
            TokenBatch(ids[rows:], mask[rows:], predicts[rows:], self.labels[~first], self.rows[~first] - rows),
        )


def pad(queries: Sequence[Encoded], pad_id: int, side: str = "right") -> TokenBatch:
    """Pad queries to the length of the longest.

    Args:
        queries: at least one tokenized query.
        pad_id: token id to pad with.
        side: ``right`` or ``left``.
    """
    length = max(len(query.ids) for query in queries)
    ids = torch.full((len(queries), length), pad_id)
    mask = torch.zeros(len(queries), length, dtype=torch.bool)
    predicts = torch.zeros_like(mask)
    labels: list[int] = []
    for row, query in enumerate(queries):
        n = len(query.ids)
        offset = length - n if side == "left" else 0
        ids[row, offset : offset + n] = torch.tensor(query.ids)
        mask[row, offset : offset + n] = True
        predicts[row, offset + query.target_start - 1 : offset + n - 1] = query.target_start < n
        labels += query.ids[query.target_start :]
    return TokenBatch(ids, mask, predicts, torch.tensor(labels, dtype=torch.long), predicts.nonzero()[:, 0])
