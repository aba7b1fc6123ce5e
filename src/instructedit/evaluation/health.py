"""The health of an edited model: whether it is still the model that it was, apart from its edits.

perplexity    exp of the mean loss per token of ordinary text, before and after
divergence    KL(unedited || edited) of the next token after fixed unrelated prompts, mean, in nats
changed       share of unrelated answers that begin with another word: the most likely next token is another one
norm          Frobenius norm of the change, relative to the matrices that it changes
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from instructedit.assets import read_yaml
from instructedit.deltas.delta import Delta
from instructedit.evaluation.edit_report import unrelated_prompts
from instructedit.evaluation.scoring import Query, score
from instructedit.models.language_model import LanguageModel
from instructedit.models.next_token import next_token_log_probs


class HealthLimits(BaseModel):
    """What an edited model may differ by from its base; None sets no limit."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    perplexity: float | None = Field(0.2, ge=0, description="relative increase of the perplexity of ordinary text")
    divergence: float | None = Field(0.5, ge=0, description="mean KL of the next token after unrelated prompts, nats")
    changed: float | None = Field(0.25, ge=0, le=1, description="share of unrelated answers that begin in another way")
    norm: float | None = Field(1.0, ge=0, description="norm of the change relative to the changed matrices")


@dataclass(frozen=True)
class Health:
    """What an edited model differs by from its base; see the module.

    Attributes:
        perplexity: (before, after).
        divergence: in nats.
        changed: share, from 0 to 1.
        norm: relative.
    """

    perplexity: tuple[float, float]
    divergence: float
    changed: float
    norm: float

    @property
    def perplexity_increase(self) -> float:
        """Relative increase of the perplexity; negative where it fell."""
        before, after = self.perplexity
        return after / before - 1

    def exceeded(self, limits: HealthLimits) -> list[str]:
        """Return what is over its limit, in words with figures; an empty list for a healthy model.

        A figure that is not a number, as of a model that is destroyed, is over any limit.
        """
        figures = {
            "perplexity": ("the perplexity of ordinary text rose by {:.1%}", self.perplexity_increase),
            "divergence": ("the next word after unrelated prompts diverges by {:.3f} nats", self.divergence),
            "changed": ("{:.0%} of unrelated answers begin in another way", self.changed),
            "norm": ("the change is {:.2f} times as large as the matrices that it changes", self.norm),
        }
        exceeded = []
        for name, (words, value) in figures.items():
            limit = getattr(limits, name)
            if limit is not None and not value <= limit:
                exceeded.append(f"{words.format(value)} (limit {limit:g})")
        return exceeded

    def as_dict(self) -> dict[str, Any]:
        """Return a dictionary for JSON."""
        return {**asdict(self), "perplexity": dict(zip(("before", "after"), self.perplexity, strict=True))}

    @classmethod
    def from_dict(cls, written: Mapping[str, Any]) -> Health:
        """Return what :meth:`as_dict` wrote."""
        perplexity = written["perplexity"]
        return cls(**{**written, "perplexity": (perplexity["before"], perplexity["after"])})


def measure_health(language_model: LanguageModel, delta: Delta) -> Health:
    """Compare an edited model with its base.

    Args:
        language_model: the base model.
        delta: all of its edits.

    Raises:
        DeltaError: the delta does not belong to the model.
    """
    return compare_models(language_model, delta.attached(language_model), relative_norm(language_model, delta))


@torch.no_grad()
def compare_models(language_model: LanguageModel, edited: AbstractContextManager[None], norm: float) -> Health:
    """Compare a model inside a context, in which it is edited, with what it is outside.

    Args:
        language_model: the base model.
        edited: the context.
        norm: of the change; see the module.
    """
    before = _perplexity(language_model), next_token_log_probs(language_model, unrelated_prompts())
    with edited:
        after = _perplexity(language_model), next_token_log_probs(language_model, unrelated_prompts())
    divergence = (before[1].exp() * (before[1] - after[1])).sum(-1).mean()
    changed = (before[1].argmax(-1) != after[1].argmax(-1)).float().mean()
    return Health((before[0], after[0]), float(divergence), float(changed), norm)


def relative_norm(language_model: LanguageModel, delta: Delta) -> float:
    """Return the Frobenius norm of a delta over that of all matrices that it changes."""
    square = 0.0
    for name in delta.factors:
        weight = language_model.model.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        square += float(weight.float().square().sum())
    return delta.norm() / math.sqrt(square)


def _perplexity(language_model: LanguageModel) -> float:
    """Return the perplexity of the fixed paragraphs; each is scored from its second word on."""
    queries = []
    for paragraph in read_yaml("health_text.yaml")["paragraphs"]:
        first, _, rest = str(paragraph).partition(" ")
        queries.append(Query(0, first, rest))
    scores = score(language_model, 0, queries, None)
    tokens = [len(each.predicted) for each in scores]
    loss = -sum(each.log_likelihood * count for each, count in zip(scores, tokens, strict=True)) / sum(tokens)
    return math.exp(min(loss, 700.0))
