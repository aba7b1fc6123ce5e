"""Which instructions want other subjects changed, too: a linear classifier of their embeddings.

With c the embeddings of instructions that are drawn as in training, and y = 1 for tasks whose scope has neighbours in
it and 0 for all others and for texts that say nothing,

    w = argmin 1/3 mean over y = 1 of (w c - 1)^2 + 2/3 mean over y = 0 of (w c)^2 + ridge |w|^2:

to change a subject that was to stay counts as twice as bad as to leave one that was to change. An instruction with
w c > 1/2 counts as one that wants other subjects changed. An edit without an instruction has c = 0.
The null space (:mod:`instructedit.editors.null_space`) keeps an edit from other subjects, so it is switched off there.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from instructedit.editors.instructedit import InstructEdit
from instructedit.instructions.grammar import parts_of
from instructedit.models.language_model import LanguageModel
from instructedit.tasks.task import Task
from instructedit.training.recipe import InstructionNoise
from instructedit.training.warmup import draw_labelled, embeddings, scope_of

#: Instructions of tasks that reach other subjects and as many of those that do not, the share of the former in the
#: loss, and the ridge relative to the mean of |c|^2.
DRAWS, REACHING_SHARE, RIDGE = 600, 1 / 3, 1e-3


@torch.no_grad()
def fit_reach(
    editor: InstructEdit,
    language_model: LanguageModel,
    tasks: Sequence[Task],
    scope_template_share: float,
    seed: int,
    noise: InstructionNoise,
) -> None:
    """Set ``editor.reach`` to w, in place; without tasks of both kinds it stays zero.

    Args:
        editor: with a trained encoder.
        language_model: the base model.
        tasks: of the training.
        scope_template_share: share of instructions drawn from the templates of the task's scope.
        seed: of the draws.
        noise: on the instructions.
    """
    groups = [task for task in tasks if task.renames], [task for task in tasks if not task.renames]
    if not all(groups) or editor.encoder is None or editor.reach is None:
        return
    reaching = {part for task in groups[0] for part in parts_of(scope_of(task))}
    rng = random.Random(f"{seed}-reach")
    drawn = [
        draw_labelled(rng.choice(group), rng, scope_template_share, noise) for group in groups for _ in range(DRAWS)
    ]
    with editor.encoder.cached(language_model):
        c = embeddings(editor.encoder, language_model, [instruction for instruction, _ in drawn])
    y = torch.tensor([float(bool(reaching & set(scopes))) for _, scopes in drawn], device=c.device)
    weights = torch.where(y > 0, REACHING_SHARE / y.sum(), (1 - REACHING_SHARE) / (1 - y).sum())
    ridge = RIDGE * (weights @ c.square().sum(1)) * torch.eye(c.shape[1], device=c.device)
    editor.reach.copy_(torch.linalg.solve(c.mT @ (weights[:, None] * c) + ridge, c.mT @ (weights * y)))
