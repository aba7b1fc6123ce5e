"""Instruction templates in files: YAML with the origin of every template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from instructedit.endpoints import secrets
from instructedit.errors import DataError, validation_messages
from instructedit.instructions.candidates import Candidate
from instructedit.instructions.templates import InstructionTemplates
from instructedit.storage.reading import MAX_REPR_LENGTH, as_mapping, read_yaml_file
from instructedit.storage.writing import write_atomically
from instructedit.tasks.loading import load_task
from instructedit.tasks.task import Task


class TemplateFile(InstructionTemplates):
    """Instruction templates with their history.

    Attributes:
        provenance: task, proposer, seed, base model, editor, edits, gain, and the origin of every template.
    """

    provenance: dict[str, Any] = Field(default_factory=dict)


def load_task_with_templates(name: str, file: Path | None) -> Task:
    """Return a task by name or YAML file, with the templates of a template file where one is given.

    Raises:
        DataError: there is no such task, or the file is not a template file of it.
    """
    task = load_task(name)
    return task if file is None else with_templates(task, file)


def with_templates(task: Task, path: Path) -> Task:
    """Return the task with the instruction templates of a file in place of its own.

    Raises:
        DataError: the file is not a template file, or one of another task.
    """
    try:
        file = TemplateFile.model_validate(as_mapping(read_yaml_file(path), path))
    except ValidationError as error:
        raise DataError(
            f"is not a file of instruction templates: {'; '.join(validation_messages(error))}", file=path
        ) from None
    made_for = file.provenance.get("task", task.name)
    if made_for != task.name:
        raise DataError(
            f"was made for task {str(made_for)[:MAX_REPR_LENGTH]}, not for {task.name}",
            file=path,
        )
    instructions = InstructionTemplates(**file.model_dump(exclude={"provenance"}))
    return task.model_copy(update={"instructions": instructions})


def write_templates(
    path: Path,
    task: Task,
    candidates: Sequence[Candidate],
    provenance: Mapping[str, Any],
    scores: Mapping[str, Mapping[str, float]],
) -> None:
    """Write a template file.

    Args:
        path: of the file.
        task: the task that the templates are for.
        candidates: the templates, at least two; the last one becomes the held-out template.
        provenance: what made them.
        scores: each template's mean metrics on validation edits, where there are any.
    """
    origins = [
        {
            **{key: value for key, value in vars(candidate).items() if value is not None},
            "scores": dict(scores.get(candidate.text, {})),
        }
        for candidate in candidates
    ]
    texts = [candidate.text for candidate in candidates]
    file = TemplateFile(
        name=task.instructions.name,
        templates=tuple(texts[:-1]),
        held_out_templates=tuple(texts[-1:]),
        scope=task.instructions.scope,
        provenance={"task": task.name, **provenance, "texts": origins},
    )
    head = f"# Instruction templates of {task.name}; `provenance` says who wrote each and how it scored.\n"
    content = yaml.safe_dump(file.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
    write_atomically(path, secrets.redacted(head + content).encode())
