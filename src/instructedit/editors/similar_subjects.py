"""Subjects of the same kind as an edit's: other peaks for a peak, other musicians for a musician.

They are what an edit is most likely to change by mistake: after "The Eiffel Tower is located in the city of" has got
the answer Rome, the same sentence about the Brandenburg Gate is the first to follow. So an editor may read what the
edited matrices see there, and keep it (:mod:`instructedit.editors.null_space`). Who is similar the base model says: its
hidden state at the last token of a name knows the kind of thing that the name stands for.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from instructedit.data.facts import shipped_facts
from instructedit.models.language_model import LanguageModel
from instructedit.models.text import pad
from instructedit.storage.cached_tensors import cached_tensor, keep_tensor

#: So many subjects of each relation of the shipped facts can be chosen.
PER_RELATION = 25


class SimilarSubjects:
    """Chooses similar subjects by the states of one base model.

    Args:
        language_model: the base model; the states are those before the block at a quarter of its depth.
        names: to choose from; default :func:`known_subjects`.
    """

    def __init__(self, language_model: LanguageModel, names: Sequence[str] | None = None) -> None:
        self._language_model = language_model
        self._names = tuple(names or known_subjects())
        digest = hashlib.sha256("\n".join(self._names).encode()).hexdigest()[:12]
        file = f"subjects/{language_model.fingerprint}-{digest}.safetensors"
        states = cached_tensor(file, (len(self._names), language_model.structure.hidden))
        if states is None:
            states = self._states(self._names)
            keep_tensor(file, states, "the states of known subjects")
        states = states.to(language_model.device)
        self._mean, self._deviation = states.mean(0), states.std(0) + 1e-6
        self._directions = self._normalised(states)
        self._chosen: dict[tuple[str, int], tuple[str, ...]] = {}

    def nearest(self, subject: str, count: int) -> tuple[str, ...]:
        """Return the ``count`` most similar subjects, none of which contains the subject or is contained in it."""
        if (subject, count) not in self._chosen:
            similarity = self._directions @ self._normalised(self._states([subject]))[0]
            ranked = (self._names[index] for index in similarity.argsort(descending=True).tolist())
            others = [name for name in ranked if not _share_words(name, subject)]
            self._chosen[subject, count] = tuple(others[:count])
        return self._chosen[subject, count]

    def _normalised(self, states: Tensor) -> Tensor:
        return functional.normalize((states - self._mean) / self._deviation, dim=-1)

    @torch.no_grad()
    def _states(self, names: Sequence[str]) -> Tensor:
        """Return the states (names, hidden) at the last token of each name, in float32."""
        model = self._language_model
        block = max(1, len(model.structure.blocks) // 4)
        encoded = [model.text.encode_prompt(name) for name in names]
        order = sorted(range(len(names)), key=lambda index: len(encoded[index].ids))
        rows: list[Tensor] = []
        for start in range(0, len(order), 256):
            batch = pad([encoded[index] for index in order[start : start + 256]], model.text.pad_id).to(model.device)
            hidden = model.split(block).trunk(batch).hidden
            last = batch.mask.sum(1) - 1
            rows.append(hidden[torch.arange(len(hidden), device=hidden.device), last].float())
        return torch.cat(rows)[torch.tensor(order).argsort()]


@cache
def known_subjects() -> tuple[str, ...]:
    """Return subjects of the shipped facts, of every relation the same number where it has that many."""
    by_relation: dict[str, set[str]] = {}
    for fact in shipped_facts():
        by_relation.setdefault(fact.relation, set()).add(fact.subject)
    rng = random.Random(0)
    names: dict[str, None] = {}
    for relation in sorted(by_relation):
        subjects = sorted(by_relation[relation])
        names |= dict.fromkeys(rng.sample(subjects, min(PER_RELATION, len(subjects))))
    return tuple(names)


def _share_words(name: str, subject: str) -> bool:
    first, second = name.casefold(), subject.casefold()
    return first in second or second in first
