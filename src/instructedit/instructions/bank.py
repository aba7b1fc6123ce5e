"""Banks of instructions as files: YAML with where every text comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from instructedit.errors import DataError, validation_messages
from instructedit.instructions import secrets
from instructedit.instructions.candidates import Candidate
from instructedit.storage.reading import MAX_REPR_LENGTH, as_mapping, read_yaml_file
from instructedit.storage.writing import write_atomically
from instructedit.tasks.task import InstructionBank, Task, load_task


class BankFile(InstructionBank):
    """A bank with its history.

    Attributes:
        provenance: what made it: task, proposer, seed, base model, editor, edits, gain, and every text's origin.
    """

    provenance: dict[str, Any] = Field(default_factory=dict)


def task_with(name: str, bank: Path | None) -> Task:
    """A task by name or YAML file, with the instructions of a bank file where one is given.

    Raises:
        DataError: there is no such task, or the file is no bank of it.
    """
    task = load_task(name)
    return task if bank is None else with_bank(task, bank)


def with_bank(task: Task, path: Path) -> Task:
    """The task with the instructions of a bank file in place of its own.

    Raises:
        DataError: the file is not a bank, or one of another task.
    """
    try:
        found = BankFile.model_validate(as_mapping(read_yaml_file(path), path))
    except ValidationError as error:
        raise DataError(f"is not a bank of instructions: {'; '.join(validation_messages(error))}", file=path) from None
    made_for = found.provenance.get("task", task.name)
    if made_for != task.name:
        raise DataError(
            f"was made for task {str(made_for)[:MAX_REPR_LENGTH]}, not for {task.name}",
            file=path,
        )
    bank = InstructionBank(**found.model_dump(exclude={"provenance"}))
    return task.model_copy(update={"instructions": bank})


def write_bank(
    path: Path,
    task: Task,
    texts: Sequence[Candidate],
    provenance: Mapping[str, Any],
    scores: Mapping[str, Mapping[str, float]],
) -> None:
    """Write a bank; ``scores`` are the texts' means on validation edits, where there are any."""
    origins = [
        {
            **{key: value for key, value in vars(text).items() if value is not None},
            "scores": dict(scores.get(text.text, {})),
        }
        for text in texts
    ]
    bank = BankFile(
        name=task.instructions.name,
        descriptions=tuple(text.text for text in texts),
        scope=task.instructions.scope,
        provenance={"task": task.name, **provenance, "texts": origins},
    )
    head = f"# Instructions of {task.name}; `provenance` says who wrote each and how it scored.\n"
    content = yaml.safe_dump(bank.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
    write_atomically(path, secrets.redacted(head + content).encode())
