"""How an edit is questioned: with or without the instruction before the queries, and under which instruction."""

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
    """What the queries look like and how answers are read.

    PAPER: the instruction stands before edit, rephrase and portability prompts; teacher-forced token accuracy.
    PLAIN: no query carries an instruction; teacher-forced token accuracy.
    GENERATION: no query carries an instruction; greedy decoding to a natural stop, exact match.
    """

    PAPER = "paper"
    PLAIN = "plain"
    GENERATION = "generation"


class Control(StrEnum):
    """Which instruction an edit gets: a task's name and a description, which can be swapped one by one.

    SEEN, UNSEEN: the task's own name with one of the descriptions that training draws, or with the tenth.
    TEXT_SWAPPED: the own name, the description of the opposite scope.
    NAME_SWAPPED: the name of the opposite scope, the own description.
    SWAPPED_SCOPE: name and description of the opposite scope.
    TEXT_ALONE: the own description behind a neutral name.
    UNRELATED: a text about something else behind a neutral name.
    OTHER_TASK: name and description of another task.
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
    """The control in words, for results."""
    return str(control) + (f", {templates} templates" if templates else "")


#: The controls that need a task with the opposite scope.
SWAPS = (Control.TEXT_SWAPPED, Control.NAME_SWAPPED, Control.SWAPPED_SCOPE)


class InstructionChooser:
    """Picks the instruction of every request of an evaluation; the same seed picks the same.

    Args:
        task: of the records.
        control: which kind.
        templates: ``validation`` or ``test`` uses the held-out templates of the task's scope instead of its own. They
            stand behind a neutral name, except where the control is about the name.
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
                raise DataError(f"task {task.name} has no opposite scope to swap with; choose another --instruction")
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
        """The rendered instruction of the next request."""
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


#: Controls whose description stands behind its own task's name; the others' stands behind a neutral one or a swapped.
_NAMED = dict.fromkeys((Control.SEEN, Control.UNSEEN, Control.OTHER_TASK))


def _held_out_of(task: Task, split: Split) -> Sequence[str]:
    """Return the held-out templates of the task's scope."""
    by_scope = held_out_templates(split)
    scope = task.instructions.scope
    if scope not in by_scope:
        raise DataError(
            f"there are no {split} templates for task {task.name} (scope {scope}); they exist for the scopes "
            f"{', '.join(by_scope)}"
        )
    return by_scope[scope]


def _unrelated_tasks(task: Task, opposite: str | None) -> list[Task]:
    """Other tasks that any request can be told of, but none of the opposite scope: that is the swapped control."""
    swapped = load_task(opposite).instructions.scope if opposite else None
    unwanted = set(parts_of(swapped)) if swapped else set()
    return [
        other
        for name, other in shipped_tasks().items()
        if name != task.name
        and not unwanted & set(parts_of(other.instructions.scope or ""))
        and not any("[" in description for description in other.instructions.all_templates)
    ]
