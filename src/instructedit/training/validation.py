"""Validation: the training loss on held-out edits."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch

from instructedit.editors.gradient import GradientEditor
from instructedit.models.language_model import LanguageModel
from instructedit.training.batches import draw_examples
from instructedit.training.mixture import Source, task_shares
from instructedit.training.objective import Losses, compute_loss
from instructedit.training.recipe import Recipe

#: Edits at a time. A batch of one task can have much longer texts than one of the mixture.
BATCH = 4


@torch.no_grad()
def validate(
    editor: GradientEditor, language_model: LanguageModel, sources: Sequence[Source], recipe: Recipe
) -> dict[str, Any]:
    """Compute the training loss on the held-out edits, with the same draws every time.

    Returns:
        ``loss``; ``tasks`` with the parts by task; ``norms``, the 1st and 99th percentile of the deltas' norms.
    """
    editor.eval()
    by_task: dict[str, dict[str, float]] = {}
    shares = task_shares(sources, recipe.mixture, recipe.temperature)
    total, norms = 0.0, []
    for source, share in zip(sources, shares, strict=True):
        parts: list[Losses] = []
        count = min(recipe.optimisation.validation_edits, len(source.pool.records))
        rng = random.Random(f"{recipe.seed}-validation-{source.task.name}")
        for start in range(0, count, BATCH):
            size = min(BATCH, count - start)
            examples = draw_examples(recipe, language_model, [source], [1.0], size, rng)
            with torch.enable_grad():  # as in training: an encoder then warns of no long text
                deltas = editor(language_model, [e.request for e in examples], [e.instruction for e in examples])
            deltas = deltas.detach()
            norms += deltas.norms().tolist()
            parts.append(compute_loss(editor, language_model, deltas, examples, recipe.objective))
        losses = Losses.concatenate(parts)
        edit, locality = losses.mean_edit, losses.mean_locality
        by_task[source.task.name] = {"edit": round(edit, 4), "locality": round(locality, 4)}
        total += share * (recipe.objective.edit_weight * edit + recipe.objective.locality_weight * locality)
    low, high = torch.tensor(norms).quantile(torch.tensor([0.01, 0.99])).tolist()
    return {"loss": round(total, 5), "tasks": by_task, "norms": (round(low, 6), round(high, 6))}
