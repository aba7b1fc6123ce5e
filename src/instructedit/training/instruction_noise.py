"""Instructions of training that must not be taken for what they are not.

An editor learns shortcuts where it can: the task's name tells the scope as well as the description does, so it reads
the name; a text that is unlike any of training gets an arbitrary embedding, which may cancel the edit. Two kinds of
noise prevent this. A name is exchanged for a neutral, another task's or an invented one while the description stays,
so only the description tells the scope. And a text that says nothing about an edit, or none at all, stands in place of
the instruction of tasks that need none, so it acts as no instruction.
"""

from __future__ import annotations

import random
import string

from instructedit.data.facts import shipped_facts
from instructedit.instructions.templates import NEUTRAL_NAME
from instructedit.tasks.loading import shipped_tasks
from instructedit.tasks.task import Task
from instructedit.training.recipe import InstructionNoise

_PREFIX = "Task: "


def with_noise(instruction: str, task: Task, noise: InstructionNoise, rng: random.Random) -> str | None:
    """Return the instruction that training uses in place of ``instruction``: often the same one, at times None.

    Without noise nothing is drawn, so other draws stay what they are.
    """
    if noise.silent and task.routing is not None and rng.random() < noise.silent:
        return None if rng.random() < noise.missing else silent_instruction(rng)
    return with_name_noise(instruction, noise, rng)


def with_name_noise(instruction: str, noise: InstructionNoise, rng: random.Random) -> str:
    """Return the instruction, at times under another name."""
    if not noise.name or rng.random() >= noise.name:
        return instruction
    _, _, description = instruction.partition("\n")
    return f"{_PREFIX}{_other_name(rng)}\n{description}"


def silent_instruction(rng: random.Random) -> str:
    """Return an instruction whose description says nothing about an edit: a fact, or letters without a meaning."""
    if rng.random() < 0.5:
        facts = rng.sample(shipped_facts(), rng.randint(1, 3))
        text = " ".join(fact.sentence(rng) for fact in facts)
    else:
        text = " ".join(_letters(rng) for _ in range(rng.randint(2, 20)))
    return f"{_PREFIX}{_other_name(rng)}\nDescription: {text}"


def _other_name(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.4:
        return NEUTRAL_NAME
    if kind < 0.8:
        return rng.choice([task.instructions.name for task in shipped_tasks().values() if not task.held_out])
    return _letters(rng).capitalize()


def _letters(rng: random.Random) -> str:
    return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 10)))
