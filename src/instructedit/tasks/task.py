"""A task is data: which probes must change, which must stay, how it is scored, and its instructions.

A user adds one by writing a YAML file like those in ``assets/tasks`` and pointing at it; no code is needed.
"""

from __future__ import annotations

import difflib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from instructedit.assets import ASSETS, read_yaml
from instructedit.errors import DataError, validation_messages
from instructedit.instructions.grammar import scope_grammar
from instructedit.records import PORTABILITY_KINDS, EditRecord, EditRequest, ProbeKind
from instructedit.storage.reading import as_mapping, read_yaml_file, short_repr

Line = Annotated[str, StringConstraints(min_length=1, pattern=r"^[^\n]*$")]

#: Task name that stands before a wording which is to be read without help.
NEUTRAL_NAME = "Edit"
#: The text of a request that brings none and looks like no task; it says as little about a scope as can be said.
NEUTRAL_TEXT = "Change this answer and leave all other answers as they are."
#: What the task of a request is called that brings its own instruction and names none; no such task can be loaded.
FREE_TEXT = "free text"
#: What a description may leave open, and the field of the request that fills it in.
PLACEHOLDERS = {"[LABEL]": "label", "[TOPIC]": "subject"}


class InstructionBank(BaseModel):
    """The instructions of a task.

    Attributes:
        name: stands after ``Task:``.
        descriptions: in our own words; the last is never seen in training, it tests unseen instructions.
            ``[LABEL]`` and ``[TOPIC]`` are filled in from the request.
        scope: name of a scope in the shipped grammar whose wordings training draws as well; ``a + b`` is both.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Line
    descriptions: tuple[Line, ...] = Field(min_length=2)
    scope: str | None = None

    def render(self, description: str, request: EditRequest | None = None, name: str | None = None) -> str:
        """``Task: <name>\\nDescription: <description>`` with the request's label and topic filled in.

        Raises:
            DataError: the description has a placeholder that the request does not fill.
        """
        for placeholder, field in PLACEHOLDERS.items():
            if placeholder in description:
                value = getattr(request, field, None)
                if value is None:
                    raise DataError(
                        f"the description of {self.name} holds {placeholder}, but the request does not say what to "
                        "put there; give its label and subject",
                        field="instruction",
                    )
                description = description.replace(placeholder, value)
        return f"Task: {name or self.name}\nDescription: {description}"

    @property
    def placeholders(self) -> tuple[str, ...]:
        """Those that every description holds: a text without one would not say what the task is about."""
        return tuple(mark for mark in PLACEHOLDERS if all(mark in text for text in self.descriptions))

    def unseen(self, request: EditRequest | None = None) -> str:
        """The description that no training sees, rendered."""
        return self.render(self.descriptions[-1], request)

    def seen(self, request: EditRequest | None, rng: random.Random) -> str:
        """One of the descriptions that training sees, rendered."""
        return self.render(rng.choice(self.descriptions[:-1]), request)

    def drawn(self, request: EditRequest, rng: random.Random, share_of_wordings: float) -> str:
        """An instruction for training: from the bank behind the task's name, or a wording of the task's scope.

        Most wordings stand behind a neutral name, so that the words alone have to tell the scope.
        """
        if self.scope is None or rng.random() >= share_of_wordings:
            return self.seen(request, rng)
        name = NEUTRAL_NAME if rng.random() < 0.8 else self.name
        return self.render(scope_grammar().draw(self.scope, rng), request, name)


class Task(BaseModel):
    """A kind of edit.

    Attributes:
        name: how it is asked for.
        summary: one line for people.
        form: the record form that its files must have; None takes any.
        change: what must say something else after the edit: the new target, or what follows from it.
        forgets: what changes is to say neither the old answer nor the new one.
        stay: probe kinds that must give what they gave before.
        opposite: the task that wants the opposite of the same edit; its text is the swapped control.
        held_out: never trained on.
        instructions: its bank.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Line
    summary: Line
    form: str | None = None
    change: tuple[
        Literal["request", "rephrase", "opposite_label", "neighbour", "subject_alias", "reasoning", "logical"], ...
    ] = ("request", "rephrase")
    forgets: bool = False
    stay: tuple[ProbeKind, ...]
    opposite: str | None = None
    held_out: bool = False
    instructions: InstructionBank

    @property
    def renames(self) -> bool:
        """Whether subjects that share the old object are to get the new one."""
        return "neighbour" in self.change

    @property
    def reached(self) -> tuple[ProbeKind, ...]:
        """The probes, other than renamed neighbours, that are to give answers of their own."""
        return tuple(kind for kind in PORTABILITY_KINDS if kind in self.change)

    @property
    def is_wider(self) -> bool:
        """Whether the edit is more than a new answer to one question."""
        return self.renames or self.forgets or bool(self.reached)

    def fits(self, record: EditRecord) -> bool:
        """Whether the record has what the task is about: every kind of probe that it reaches, an answer to forget."""
        return all(record.of_kind(kind) for kind in self.reached) and not (
            self.forgets and record.request.ground_truth is None
        )

    def deciding(self, other: Task) -> tuple[tuple[ProbeKind, ...], tuple[ProbeKind, ...]]:
        """What tells whether an edit followed this task, not the other: what changes here only, and what stays."""
        changes = tuple(kind for kind in ProbeKind if kind in self.change and kind not in other.change)
        return changes, tuple(kind for kind in self.stay if kind in other.change)


def _parse(raw: Any, source: object) -> Task:
    try:
        return Task.model_validate(raw)
    except ValidationError as error:
        problems = "; ".join(validation_messages(error))
        raise DataError(f"is not a task: {problems}", file=source) from None


def shipped_tasks() -> dict[str, Task]:
    """The tasks that come with the package, by name."""
    tasks = {}
    for path in sorted((ASSETS / "tasks").glob("*.yaml"), key=lambda path: path.stem):
        raw = dict(read_yaml(f"tasks/{path.name}"))
        bank = read_yaml(f"instructions/{path.name}")
        raw["instructions"] = {**bank, **raw.get("instructions", {})}
        task = _parse(raw, path)
        tasks[task.name] = task
    return tasks


def free_text() -> Task:
    """The task of a request that names none; its text is the request's own, or else :data:`NEUTRAL_TEXT`."""
    counterfact = load_task("counterfact")
    bank = InstructionBank(name=NEUTRAL_NAME, descriptions=(NEUTRAL_TEXT, NEUTRAL_TEXT))
    return counterfact.model_copy(update={"name": FREE_TEXT, "instructions": bank})


def fitting(task: Task, records: Sequence[EditRecord], file: object) -> list[EditRecord]:
    """The records that have what the task is about.

    Raises:
        DataError: none has.
    """
    found = [record for record in records if task.fits(record)]
    if not found:
        needed = [str(kind) for kind in task.reached] + ["ground_truth"] * task.forgets
        raise DataError(f"no record has what task {task.name} is about ({', '.join(needed)})", file=file)
    return found


def load_task(name_or_path: str | Path) -> Task:
    """A shipped task by name, or a user's by the path of its YAML file.

    Raises:
        DataError: neither; the nearest name is suggested. Or the file is not a valid task.
    """
    tasks = shipped_tasks()
    if str(name_or_path) in tasks:
        return tasks[str(name_or_path)]
    path = Path(name_or_path)
    if path.suffix in {".yaml", ".yml"}:
        return _parse(as_mapping(read_yaml_file(path), path), path)
    near = difflib.get_close_matches(str(name_or_path), tasks, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise DataError(
        f"no task is named {short_repr(str(name_or_path))}.{hint} Known: {', '.join(tasks)}; or give a task's YAML file"
    )
