"""The examples of a recipe: drawn from its mixture, with its noise on the instructions and its share of chat."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from instructedit.models.language_model import LanguageModel
from instructedit.training.chat_queries import in_chat
from instructedit.training.mixture import Example, Source, draw_batch
from instructedit.training.recipe import Recipe


def draw_examples(
    recipe: Recipe,
    language_model: LanguageModel,
    sources: Sequence[Source],
    shares: Sequence[float],
    count: int,
    rng: random.Random,
) -> list[Example]:
    """Return ``count`` examples of the sources by the recipe's settings.

    Args:
        recipe: Settings of the stage.
        language_model: The base model, whose chat template is used.
        sources: The tasks.
        shares: Their shares, which sum to 1.
        count: Number of examples.
        rng: Source of all randomness.
    """
    share, noise = recipe.scope_template_share, recipe.instruction_noise
    examples = draw_batch(sources, shares, count, recipe.objective, share, rng, noise)
    if recipe.without_subject:
        examples = [_without_subject(e) if rng.random() < recipe.without_subject else e for e in examples]
    return in_chat(examples, recipe.chat, language_model.chat_prompt, rng)


def _without_subject(example: Example) -> Example:
    return replace(example, request=example.request.model_copy(update={"subject": None}))
