"""From text to tokens: how prompts and targets are joined, padded and labelled."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from instructedit.errors import DataError

#: Texts whose tokens a :class:`TextEncoder` remembers; the least recently used are forgotten first.
REMEMBERED_TEXTS = 100_000


def join(prompt: str, target: str) -> tuple[str, str]:
    """Prompt and continuation with exactly one space between them, which belongs to the continuation.

    Data sets disagree on who brings the space, and the place decides the tokens of a byte-level vocabulary.
    """
    return prompt.rstrip(), " " + target.strip()


def closed(answer: str) -> str:
    """The answer with a full stop, unless it brings an end mark of its own."""
    return answer if answer.rstrip()[-1:] in ".!?" else answer.rstrip() + "."


@dataclass(frozen=True)
class Encoded:
    """One tokenised query: ``ids`` of prompt and target, and where the target's tokens begin."""

    ids: tuple[int, ...]
    target_start: int


class TextEncoder:
    """Tokenises (prompt, target) pairs of one tokenizer, and remembers the last :data:`REMEMBERED_TEXTS` of them.

    Args:
        tokenizer: any Hugging Face tokenizer.
        max_length: longest sequence in tokens that the base model takes.
        embeddings: how many token ids it knows; None asks no further.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, *, embeddings: int | None = None) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.embeddings = embeddings
        self._lock = Lock()  # a fast tokenizer is not made for two threads at once, and the memory is not, either
        self._seen: OrderedDict[tuple[str, str], Encoded] = OrderedDict()

    @property
    def pad_id(self) -> int:
        """Padding token; any id will do, as padding is masked everywhere."""
        for name in ("pad_token_id", "eos_token_id"):
            found = getattr(self.tokenizer, name)
            # A padding token that was added to the tokenizer alone has no embedding.
            if found is not None and (self.embeddings is None or found < self.embeddings):
                return int(found)
        return 0

    def prompt(self, prompt: str) -> Encoded:
        """A prompt alone, without target tokens."""
        return self._encode(prompt.rstrip(), "")

    def pair(self, prompt: str, target: str) -> Encoded:
        """A prompt with its continuation.

        Raises:
            DataError: no tokens for the target, or the whole is longer than the model takes.
        """
        if not target.strip():
            raise DataError(f"the target after {prompt!r} is blank", field="target")
        return self._encode(*join(prompt, target))

    def _encode(self, prompt: str, target: str) -> Encoded:
        key = (prompt, target)
        with self._lock:
            if key not in self._seen:
                self._seen[key] = self._tokenise(prompt, target)
                if len(self._seen) > REMEMBERED_TEXTS:
                    self._seen.popitem(last=False)
            self._seen.move_to_end(key)
            return self._seen[key]

    def _tokenise(self, prompt: str, target: str) -> Encoded:
        if self.tokenizer.is_fast:
            # The whole text is tokenised at once, as a user's query would be; a token belongs to the target
            # if it reaches past the prompt's last character.
            encoding = self.tokenizer(prompt + target, return_offsets_mapping=True)
            ids = list(encoding["input_ids"])
            ends = [end for _, end in encoding["offset_mapping"]]
            start = next((i for i, end in enumerate(ends) if end > len(prompt)), len(ids))
        else:
            ids = list(self.tokenizer(prompt + target)["input_ids"])
            start = min(len(self.tokenizer(prompt)["input_ids"]), len(ids))
        if not ids:
            raise DataError("the prompt is blank", field="prompt")
        if target and start == len(ids):
            raise DataError(f"the target {target.strip()!r} has no tokens after {prompt!r}", field="target")
        if target and start == 0:
            raise DataError("the prompt has no tokens of its own before the target", field="prompt")
        if len(ids) > self.max_length:
            raise DataError(
                f"{len(ids)} tokens, the model takes {self.max_length}: shorten {prompt[:60] + '…'!r}",
                field="prompt",
            )
        if self.embeddings is not None and max(ids) >= self.embeddings:
            token = self.tokenizer.convert_ids_to_tokens(max(ids))
            raise DataError(
                f"the token {token!r} has the id {max(ids)}, and the model's embedding has {self.embeddings} rows: "
                "leave it out",
                field="prompt",
            )
        return Encoded(tuple(ids), start)


@dataclass(frozen=True)
class TokenBatch:
    """Padded queries.

    Attributes:
        ids: (rows, length) token ids.
        mask: (rows, length) True at real tokens.
        predicts: (rows, length) True where the NEXT token is a target token; such a position's logits are
            read, all others are not. Alignment is by this mask alone, so the padding side does not matter.
        labels: (predicted,) the target token of every True in ``predicts``, in row-major order.
        rows: (predicted,) the row of every label.
    """

    ids: Tensor
    mask: Tensor
    predicts: Tensor
    labels: Tensor
    rows: Tensor

    def __len__(self) -> int:
        return self.ids.shape[0]

    @property
    def positions(self) -> Tensor:
        """(rows, length) position of each token in its text; at padding it means nothing."""
        return (self.mask.long().cumsum(1) - 1).clamp_min(0)

    def to(self, device: torch.device | str) -> TokenBatch:
        """The same batch on another device."""
        return TokenBatch(*(t.to(device) for t in (self.ids, self.mask, self.predicts, self.labels, self.rows)))


def pad(queries: Sequence[Encoded], pad_id: int, side: str = "right") -> TokenBatch:
    """Pad queries to the longest; ``side`` is ``right`` or ``left``."""
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
