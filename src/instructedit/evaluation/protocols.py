"""How an edit is questioned: with or without the instruction before the queries, and under which instruction."""

from __future__ import annotations

import random
from enum import StrEnum

from instructedit.errors import DataError
from instructedit.records import EditRequest
from instructedit.tasks.grammar import parts_of, wordings
from instructedit.tasks.task import NEUTRAL_NAME, Task, load_task, shipped_tasks


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
    """Which instruction an edit gets. The last three show whether the editor reads it."""

    SEEN = "seen"
    UNSEEN = "unseen"
    OTHER_TASK = "other-task"
    SWAPPED_SCOPE = "swapped-scope"
    NONE = "none"


class InstructionChooser:
    """Picks the instruction of every request of an evaluation; the same seed picks the same.

    Args:
        task: of the records.
        control: which kind.
        wording: ``validation`` or ``test`` replaces the task's own descriptions by hand-written wordings
            behind a neutral name: the task's, or those of a task of the same scope.
        opposite: the task whose text is the swapped one, in place of the task's own opposite.

    Raises:
        DataError: the task has no opposite to swap with, or no wordings.
    """

    def __init__(
        self, task: Task, control: Control, wording: str | None = None, seed: int = 0, opposite: str | None = None
    ) -> None:
        self.task = task
        self.control = control
        self._rng = random.Random(f"{seed}-{control}")
        self._texts: list[str] | None = None
        told = task
        if control is Control.SWAPPED_SCOPE:
            opposite = opposite or task.opposite
            if opposite is None:
                raise DataError(f"task {task.name} has no opposite scope to swap with; choose another --instruction")
            told = load_task(opposite)
        self._told = told
        self._others = _unrelated_tasks(task, opposite or task.opposite) if control is Control.OTHER_TASK else []
        if wording is not None and control is not Control.OTHER_TASK:
            self._texts = _wordings_of(told, wording)
        self._count = 0

    def __call__(self, request: EditRequest) -> str | None:
        """The rendered instruction of the next request."""
        self._count += 1
        if self.control is Control.NONE:
            return None
        bank = (self._rng.choice(self._others) if self._others else self._told).instructions
        if request.instruction is not None and self.control in (Control.SEEN, Control.UNSEEN):
            return bank.render(request.instruction, request)
        if self._texts is not None:
            return bank.render(self._texts[(self._count - 1) % len(self._texts)], request, NEUTRAL_NAME)
        if self.control is Control.SEEN:
            return bank.seen(request, self._rng)
        return bank.unseen(request)


def _wordings_of(task: Task, kind: str) -> list[str]:
    texts = wordings(kind)
    if task.name in texts:
        return texts[task.name]
    scope = task.instructions.scope
    for name, other in shipped_tasks().items():
        if name in texts and scope is not None and other.instructions.scope == scope:
            return texts[name]
    raise DataError(f"there are no {kind} wordings for {task.name}; they exist for {', '.join(texts)}")


def _unrelated_tasks(task: Task, opposite: str | None) -> list[Task]:
    """Other tasks that any request can be told of, but none of the opposite scope: that is the swapped control."""
    swapped = load_task(opposite).instructions.scope if opposite else None
    unwanted = set(parts_of(swapped)) if swapped else set()
    return [
        other
        for name, other in shipped_tasks().items()
        if name != task.name
        and not unwanted & set(parts_of(other.instructions.scope or ""))
        and not any("[" in description for description in other.instructions.descriptions)
    ]
