"""A line search for an edit's step size: the smallest multiple of the trained one with which the edit holds.

A trained editor gives all edits of a kind about the same size. Some hold with less and then spare other subjects,
others need more. A target that is likely after the bare prompt may still be lost after a paraphrase, so the prompt is
also read behind sentences that have nothing to do with it. With D the edit's change and c these contexts, let

    p(s) = min over c of p(target | c, prompt; W + s D)^(1 / tokens of the target).

Of the multiples s, ascending, the first with p(s) >= p0 is taken; if there is none, the first with p(s) >= 0.9 p(1).
The trunk reads every context once; a multiple costs one forward pass of the top.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from instructedit.deltas.delta import DeltaBatch
from instructedit.editors.signals import edit_loss
from instructedit.models.language_model import LanguageModel
from instructedit.models.text import pad

#: Multiples of the trained step size, ascending.
MULTIPLES = (0.5, 0.65, 0.8, 1.0, 1.25)
#: Share of p(1) that is enough where no multiple reaches p0.
ENOUGH = 0.9
#: Stand before the prompt; written for this purpose.
CONTEXTS = (
    "",
    "It rained in the morning, and the market opened late. ",
    "He closed the book and looked at the list again.\n",
    "There were twelve of them, most of them new. ",
)


@torch.no_grad()
def with_smallest_steps(
    language_model: LanguageModel,
    deltas: DeltaBatch,
    prompts: Sequence[str],
    targets: Sequence[str],
    split_layer: int,
    probability: float,
) -> DeltaBatch:
    """Return the deltas, each times its own multiple.

    Args:
        language_model: the unedited base model.
        deltas: of the edits, with the trained step size.
        prompts: of the edits.
        targets: of the edits.
        split_layer: lowest block that the deltas change.
        probability: p0.
    """
    text = language_model.text
    pairs = zip(prompts, targets, strict=True)
    queries = [text.encode_pair(context + prompt, target) for prompt, target in pairs for context in CONTEXTS]
    split = language_model.split(split_layer)
    state = split.trunk(pad(queries, text.pad_id).to(language_model.device))
    edit_of_row = torch.arange(len(prompts)).repeat_interleave(len(CONTEXTS))
    reached = torch.zeros(len(prompts), len(MULTIPLES))
    for column, multiple in enumerate(MULTIPLES):
        open_edits = (reached < probability).all(1)
        rows = open_edits[edit_of_row].nonzero()[:, 0]
        if not len(rows):
            break
        part = state.select(rows)
        with deltas.scale(torch.full((len(prompts),), multiple)).attached(language_model, edit_of_row[rows]):
            losses = edit_loss(split.top(part), part.batch)
        reached[open_edits, column] = (-losses).exp().view(-1, len(CONTEXTS)).amin(1).cpu()
    return deltas.scale(torch.tensor([_chosen(row, probability) for row in reached.tolist()]))


def _chosen(reached: Sequence[float], probability: float) -> float:
    """Return the multiple of an edit, given p(s) for the multiples until the first that is enough, and 0 after it."""
    wanted = probability if max(reached) >= probability else ENOUGH * reached[MULTIPLES.index(1.0)]
    holding = (multiple for multiple, p in zip(MULTIPLES, reached, strict=True) if p >= wanted)
    return next(holding, 1.0)  # p(1) may be NaN
