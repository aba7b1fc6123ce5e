"""Finding tasks: those that ship with the package, those of the user's folder, and any YAML file.

Raises :class:`DataError` with the nearest name where a task is not known.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from instructedit.assets import ASSETS
from instructedit.errors import DataError, did_you_mean, validation_messages
from instructedit.instructions.templates import NEUTRAL_NAME, InstructionTemplates
from instructedit.storage.reading import as_mapping, read_yaml_file, short_repr
from instructedit.tasks.task import Task, TaskFiles

#: Environment variable with a folder of task files that are listed beside those of the package.
TASKS_VARIABLE = "INSTRUCTEDIT_TASKS"
#: The text of a request that has none and resembles no task; it says as little about a scope as possible.
NEUTRAL_TEXT = "Change this answer and leave all other answers as they are."
#: Name of the task of a request that has its own instruction and names no task; no such task can be loaded.
FREE_TEXT = "free text"


def shipped_tasks() -> dict[str, Task]:
    """Return the tasks that ship with the package, by name."""
    return dict(_shipped())


@cache
def _shipped() -> dict[str, Task]:
    return _tasks_in(ASSETS / "tasks")


def known_tasks() -> dict[str, Task]:
    """Return the shipped tasks and those in the folder that ``INSTRUCTEDIT_TASKS`` names, by name.

    Raises:
        DataError: the folder does not exist, or a file in it is not a task or has a shipped task's name.
    """
    tasks = shipped_tasks()
    folder = os.environ.get(TASKS_VARIABLE)
    if not folder:
        return tasks
    if not Path(folder).is_dir():
        raise DataError(f"{TASKS_VARIABLE} names a folder that does not exist", file=folder)
    for name, task in _tasks_in(Path(folder)).items():
        if name in tasks:
            raise DataError(f"task {name} has the name of a shipped task; rename it", file=folder)
        tasks[name] = task
    return tasks


def listed_tasks() -> list[Task]:
    """Return the known tasks in the order of tables and of routing."""
    return sorted(known_tasks().values(), key=lambda task: (task.order, task.name))


def load_task(name_or_path: str | Path) -> Task:
    """Return a task by its name, or a user's by the path of its YAML file.

    Raises:
        DataError: it is neither, and the nearest name is suggested; or the file is not a valid task.
    """
    name = str(name_or_path)
    if name in _shipped():
        return _shipped()[name]
    path = Path(name_or_path)
    if path.suffix in {".yaml", ".yml"}:
        return read_task(path)
    tasks = known_tasks()
    if name in tasks:
        return tasks[name]
    hint = did_you_mean(name, tasks)
    raise DataError(f"no task is named {short_repr(name)}.{hint} Known: {', '.join(tasks)}; or give a task's YAML file")


def read_task(path: Path) -> Task:
    """Return the task of a YAML file; its data files that lie beside it get whole paths.

    Raises:
        DataError: the file cannot be read or is not a task; all mistakes are listed.
    """
    raw: dict[str, Any] = as_mapping(read_yaml_file(path), path)
    try:
        task = Task.model_validate(raw)
    except ValidationError as error:
        raise DataError(f"is not a task: {'; '.join(validation_messages(error))}", file=path) from None
    return task.model_copy(update={"files": _located(task.files, path.parent)})


def free_text_task() -> Task:
    """Return the task of a request that names none; its text is the request's own, or else :data:`NEUTRAL_TEXT`."""
    instructions = InstructionTemplates(
        name=NEUTRAL_NAME, templates=(NEUTRAL_TEXT,), held_out_templates=(NEUTRAL_TEXT,)
    )
    return load_task("counterfact").model_copy(update={"name": FREE_TEXT, "instructions": instructions})


def _tasks_in(folder: Path) -> dict[str, Task]:
    """Return the tasks of a folder's YAML files by name, in the order of the file names."""
    tasks: dict[str, Task] = {}
    for path in sorted(folder.glob("*.yaml"), key=lambda path: path.stem):
        task = read_task(path)
        if task.name in tasks:
            raise DataError(f"another file of this folder has a task named {task.name}", file=path)
        tasks[task.name] = task
    return tasks


def _located(files: TaskFiles, folder: Path) -> TaskFiles:
    """Return the files with whole paths for those that lie in a folder."""

    def located(name: str | None) -> str | None:
        return str((folder / name).resolve()) if name is not None and (folder / name).is_file() else name

    return TaskFiles(
        train=tuple(located(name) or name for name in files.train),
        validation=located(files.validation),
        test=located(files.test),
        bundled=located(files.bundled),
    )
