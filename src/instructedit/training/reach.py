"""Which instructions want other subjects changed, too: a linear classifier of their embeddings.

With c the embeddings of instructions that are drawn as in training, and y = 1 for tasks whose scope has neighbours in
it and 0 for all others and for texts that say nothing,

    w = argmin mean (w c - y)^2 + ridge |w|^2;

an instruction with w c > 1/2 counts as one that wants other subjects changed. An edit without an instruction has c = 0.
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
from instructedit.training.warmup import draw_labelled, scope_of

#: Instructions of each task, and the ridge relative to the mean of |c|^2.
DRAWS, RIDGE = 150, 1e-3
#: Instructions at a time.
BATCH = 64


@torch.no_grad()
def fit_reach(
    editor: InstructEdit,
    language_model: LanguageModel,
    tasks: Sequence[Task],
    scope_template_share: float,
    seed: int,
    noise: InstructionNoise,
) -> None:
    """Set ``editor.reach`` to w, in place; without a task that reaches other subjects it stays zero.

    Args:
        editor: with a trained encoder.
        language_model: the base model.
        tasks: of the training.
        scope_template_share: share of instructions drawn from the templates of the task's scope.
        seed: of the draws.
        noise: on the instructions.
    """
    reaching = {part for task in tasks if task.renames for part in parts_of(scope_of(task))}
    if not reaching or editor.encoder is None or editor.reach is None:
        return
    rng = random.Random(f"{seed}-reach")
    drawn = [draw_labelled(task, rng, scope_template_share, noise) for task in tasks for _ in range(DRAWS)]
    instructions = [instruction for instruction, _ in drawn]
    parts = [instructions[start : start + BATCH] for start in range(0, len(instructions), BATCH)]
    c = torch.cat([editor.encoder(language_model, part).float() for part in parts])
    y = torch.tensor([float(bool(reaching & set(scopes))) for _, scopes in drawn], device=c.device)
    ridge = RIDGE * c.square().sum(1).mean() * torch.eye(c.shape[1], device=c.device)
    editor.reach.copy_(torch.linalg.solve(c.mT @ c / len(c) + ridge, c.mT @ y / len(c)))
