"""Texts of many edits in batches, each text with its own edit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from instructedit.deltas.delta import Delta, DeltaBatch
from instructedit.deltas.factors import Dense, Factor, LowRank
from instructedit.models.language_model import LanguageModel
from instructedit.models.split import TrunkState
from instructedit.models.text import pad


@dataclass(frozen=True)
class Text:
    """A prompt with an answer after it.

    Attributes:
        prompt: what the model reads.
        answer: what follows; read, not trained.
        kept: here the merged change is to leave the base model as it is, whatever the edit does.
    """

    prompt: str
    answer: str
    kept: bool = False


@dataclass(frozen=True)
class TextBatch:
    """Texts of several edits, of similar length.

    Attributes:
        deltas: the edits of the texts, and an empty one for texts that are kept as they are.
        rows: (rows,) index of the edit of each text, in ``deltas``.
        owners: of each text, the number of its edit and its own number among that edit's texts.
        state: the trunk's state of the texts.
    """

    deltas: tuple[Delta, ...]
    rows: Tensor
    owners: tuple[tuple[int, int], ...]
    state: TrunkState

    def own_prompt_weights(self, weight: float) -> Tensor:
        """Return ``weight`` for each edit's first text, its own prompt, and 1 for the others, (rows,)."""
        return torch.tensor([weight if number == 0 else 1.0 for _, number in self.owners])


def text_batches(
    deltas: Sequence[Delta],
    texts: Sequence[Sequence[Text]],
    language_model: LanguageModel,
    split_layer: int,
    size: int,
) -> Iterator[TextBatch]:
    """Yield all texts, those of similar length together.

    Args:
        deltas: the edits.
        texts: of each edit.
        language_model: the base model.
        split_layer: up to which block the texts are run.
        size: texts at a time.
    """
    none = len(deltas)
    with_none = [*deltas, Delta({})]
    queries = [
        ((edit, number), language_model.text.encode_pair(text.prompt, text.answer))
        for edit, own in enumerate(texts)
        for number, text in enumerate(own)
    ]
    queries.sort(key=lambda query: len(query[1].ids))
    for start in range(0, len(queries), size):
        part = queries[start : start + size]
        batch = pad([query for _, query in part], language_model.text.pad_id).to(language_model.device)
        owners = tuple(owner for owner, _ in part)
        made_by = torch.tensor([none if texts[edit][number].kept else edit for edit, number in owners])
        edits, rows = made_by.unique(return_inverse=True)
        state = language_model.split(split_layer).trunk(batch)
        yield TextBatch(tuple(with_none[edit] for edit in edits.tolist()), rows, owners, state)


def stack(deltas: Sequence[Delta], names: Sequence[str]) -> DeltaBatch:
    """Return deltas as a batch, of the matrices that any of them changes; the others have zeros there."""
    factors: dict[str, Factor] = {}
    for name in names:
        own = [delta.factors.get(name) for delta in deltas]
        low = [factor for factor in own if isinstance(factor, LowRank)]
        present = [factor for factor in own if factor is not None]
        if not present:
            continue
        inputs, outputs = present[0].shape
        if len(low) < len(present):
            zero = torch.zeros(inputs, outputs, dtype=present[0].dtype)
            factors[name] = Dense(torch.stack([zero if f is None else f.dense().to(zero.dtype) for f in own]))
            continue
        rank = max(factor.rank for factor in low)
        a, b = low[0].a.new_zeros(len(deltas), inputs, rank), low[0].b.new_zeros(len(deltas), rank, outputs)
        for index, factor in enumerate(own):
            if isinstance(factor, LowRank):
                a[index, :, : factor.rank], b[index, : factor.rank] = factor.a, factor.b
        factors[name] = LowRank(a, b)
    return DeltaBatch(factors)
