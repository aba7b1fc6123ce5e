"""Where the strength of the null space starts: high, but low for instructions whose edits are to reach other subjects.

An instruction moves the logit of rho by K c (:mod:`instructedit.editors.null_space`). From K = 0, gradient steps learn
to change other subjects against the null space before they learn to switch it off. The tasks say which scopes reach
other subjects, so K starts at the ridge solution for that: with c the embeddings of drawn instructions, and y = 1 for
those with such a scope and 0 for all others,

    K = -SHIFT w,    w = argmin mean (w c - y)^2 + ridge |w|^2.
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

#: By how much the logit falls where the fit is exact. rho starts at 0.88, so it falls to 0.02.
SHIFT = 6.0
#: Instructions of each task, and the ridge relative to the mean of |c|^2.
DRAWS, RIDGE = 150, 1e-3
#: Instructions at a time.
BATCH = 64


@torch.no_grad()
def start_null_space(
    editor: InstructEdit,
    language_model: LanguageModel,
    tasks: Sequence[Task],
    scope_template_share: float,
    seed: int,
    noise: InstructionNoise,
) -> None:
    """Set K of an editor, in place, where it is still zero; without a task that reaches other subjects it stays zero.

    Args:
        editor: with a null space and an encoder that has been trained.
        language_model: the base model.
        tasks: of the training.
        scope_template_share: share of instructions drawn from the templates of the task's scope.
        seed: of the draws.
        noise: on the instructions.
    """
    reaching = {part for task in tasks if task.renames for part in parts_of(scope_of(task))}
    if not reaching or editor.encoder is None or editor.null_space_condition is None:
        return
    weight = editor.null_space_condition.weight
    if weight.any():
        return
    rng = random.Random(f"{seed}-null space")
    drawn = [draw_labelled(task, rng, scope_template_share, noise) for task in tasks for _ in range(DRAWS)]
    instructions = [instruction for instruction, _ in drawn]
    c = torch.cat(
        [
            editor.encoder(language_model, instructions[start : start + BATCH]).float()
            for start in range(0, len(instructions), BATCH)
        ]
    )
    y = torch.tensor([float(bool(reaching & set(scopes))) for _, scopes in drawn], device=c.device)
    ridge = RIDGE * c.square().sum(1).mean() * torch.eye(c.shape[1], device=c.device)
    w = torch.linalg.solve(c.mT @ c / len(c) + ridge, c.mT @ y / len(c))
    weight.copy_((-SHIFT * w).expand_as(weight))
