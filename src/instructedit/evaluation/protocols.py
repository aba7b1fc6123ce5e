"""How edits are evaluated: what the queries look like, how answers are given, and which instruction an edit gets."""

from __future__ import annotations

import random
from collections.abc import Sequence
from enum import StrEnum

from instructedit.errors import DataError
from instructedit.instructions.grammar import parts_of
from instructedit.instructions.templates import NEUTRAL_NAME, Split, held_out_templates, unrelated_texts
from instructedit.records import EditRequest
from instructedit.tasks.loading import load_task, shipped_tasks
from instructedit.tasks.task import Task


class Protocol(StrEnum):
    """What the queries look like and how answers are scored.

    PAPER: the instruction precedes edit, rephrase and portability prompts; token accuracy under teacher forcing.
    PLAIN: no instruction precedes a query; token accuracy under teacher forcing.
    GENERATION: no instruction precedes a query; free generation (greedy decoding), exact match.
    ANSWER: as GENERATION, but the text only has to begin with the answer: a real model goes on talking after it.
    CHAT: every query is a user's message in the model's chat template; token accuracy of the assistant's answer under
        teacher forcing.
    """

    PAPER = "paper"
    PLAIN = "plain"
    GENERATION = "generation"
    ANSWER = "answer"
    CHAT = "chat"

    @property
    def generates(self) -> bool:
        """Whether answers are generated freely, not scored under teacher forcing."""
        return self in (Protocol.GENERATION, Protocol.ANSWER)


class Control(StrEnum):
    """Which instruction an edit gets: the task's own, or that of a control.

    An instruction has a task name and a description. The swapped-instruction controls replace one or both by those of
    the opposite task: an editor that reads its instruction then makes the opposite edit.

    SEEN: the task's name and a description that training draws.
    UNSEEN: the task's name and a description held out from training.
    TEXT_SWAPPED: the task's name, the opposite task's description.
    NAME_SWAPPED: the opposite task's name, the task's description.
    SWAPPED_SCOPE: the opposite task's name and description.
    TEXT_ALONE: a neutral name, the task's description.
    UNRELATED: a neutral name, a description of something else.
    OTHER_TASK: name and description of a task that is neither the own nor the opposite one.
    NONE: no instruction.
    """

    SEEN = "seen"
    UNSEEN = "unseen"
    TEXT_SWAPPED = "text-swapped"
    NAME_SWAPPED = "name-swapped"
    SWAPPED_SCOPE = "swapped-scope"
    TEXT_ALONE = "text-alone"
    UNRELATED = "unrelated"
    OTHER_TASK = "other-task"
    NONE = "none"


def described(control: Control, templates: Split | None) -> str:
    """Return the control in words, for results."""
    return str(control) + (f", {templates} templates" if templates else "")


#: The swapped-instruction controls, which need an opposite task.
SWAPS = (Control.TEXT_SWAPPED, Control.NAME_SWAPPED, Control.SWAPPED_SCOPE)


class InstructionChooser:
    """Chooser of the instruction of every request of an evaluation; the same seed gives the same instructions.

    Args:
        task: of the records.
        control: which kind.
        templates: uses the held-out templates of the task's scope of this split instead of its own. They stand behind a
            neutral name, except where the control is about the name.
        opposite: the task that the swaps swap with, in place of the task's own opposite.
        descriptions: the description of every request, in their order, behind the task's name; the control is then
            not used.

    Raises:
        DataError: the task has no opposite to swap with, or no such templates.
    """

    def __init__(
        self,
        task: Task,
        control: Control,
        templates: Split | None = None,
        seed: int = 0,
        opposite: str | None = None,
        descriptions: Sequence[str] | None = None,
    ) -> None:
        self.task = task
        self.control = control
        self._rng = random.Random(f"{seed}-{control}")
        self._count = 0
        self._texts: Sequence[str] | None = descriptions
        self._name: str | None = None if descriptions is not None else _NAMED.get(control, NEUTRAL_NAME)
        self._bank = task.instructions
        self._others: list[Task] = []
        if descriptions is not None:
            return
        opposite = opposite or task.opposite
        if control in SWAPS:
            if opposite is None:
                raise DataError(
                    f"task {task.name} has no opposite task; set --opposite, or choose another --instruction"
                )
            other = load_task(opposite)
            described = task if control is Control.NAME_SWAPPED else other
            named = task if control is Control.TEXT_SWAPPED else other
            self._bank, self._name = described.instructions, named.instructions.name
            self._texts = None if templates is None else _held_out_of(described, templates)
            if templates is not None and control is Control.SWAPPED_SCOPE:
                self._name = NEUTRAL_NAME
        elif control is Control.OTHER_TASK:
            self._others = _unrelated_tasks(task, opposite)
        elif control is Control.UNRELATED:
            self._texts = unrelated_texts()
        elif templates is not None:
            self._texts, self._name = _held_out_of(task, templates), NEUTRAL_NAME

    def __call__(self, request: EditRequest) -> str | None:
        """Return the rendered instruction of the next request, or None for the control without one."""
        self._count += 1
        if self.control is Control.NONE:
            return None
        if request.instruction is not None and self.control in (Control.SEEN, Control.UNSEEN):
            return self._bank.render(request.instruction, request, NEUTRAL_NAME)
        if self._texts is not None:
            return self._bank.render(self._texts[(self._count - 1) % len(self._texts)], request, self._name)
        bank = self._rng.choice(self._others).instructions if self._others else self._bank
        if self.control is Control.SEEN:
            return bank.draw(request, self._rng)
        held_out = bank.held_out_templates
        return bank.render(held_out[(self._count - 1) % len(held_out)], request, self._name)


#: Controls whose description is combined with the name of its own task; the others use a neutral or swapped name.
_NAMED = dict.fromkeys((Control.SEEN, Control.UNSEEN, Control.OTHER_TASK))


def _held_out_of(task: Task, split: Split) -> Sequence[str]:
    """Return the held-out templates of the task's scope."""
    by_scope = held_out_templates(split)
    scope = task.instructions.scope
    if scope not in by_scope:
        raise DataError(
            f"there are no {split} templates for the scope {scope} of task {task.name}; the scopes with such templates "
            f"are {', '.join(by_scope)}"
        )
    return by_scope[scope]


def _unrelated_tasks(task: Task, opposite: str | None) -> list[Task]:
    """Return the tasks whose description fits any request, except those of the opposite scope (another control)."""
    swapped = load_task(opposite).instructions.scope if opposite else None
    unwanted = set(parts_of(swapped)) if swapped else set()
    return [
        other
        for name, other in shipped_tasks().items()
        if name != task.name
        and not unwanted & set(parts_of(other.instructions.scope or ""))
        and not any("[" in description for description in other.instructions.all_templates)
    ]
