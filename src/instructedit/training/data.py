"""Training data of a recipe: files to records, records to sources for training and validation."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from instructedit.data.locations import data_file
from instructedit.data.pool import RecordPool
from instructedit.data.readers import read_records
from instructedit.errors import DataError
from instructedit.records import EditRecord
from instructedit.tasks.edits import fitting_records
from instructedit.tasks.loading import load_task
from instructedit.tasks.task import Task
from instructedit.training.mixture import Source
from instructedit.training.recipe import Recipe


def read_sources(recipe: Recipe, data: Path) -> tuple[list[Source], list[Source]]:
    """Read the training and validation sources of a recipe, one per task each.

    Args:
        recipe: Names the tasks and their files.
        data: Folder that the file names are relative to.

    Raises:
        DataError: A file is missing or wrong, or a task has too few records.
    """
    tasks = {mix.task: load_task(mix.task) for mix in recipe.tasks}
    records = _read_records(recipe, tasks, data)
    train, validation = split_validation(records, recipe.optimisation.validation_edits, recipe.seed)
    for mix in recipe.tasks:
        if mix.records is not None and mix.records < len(train[mix.task]):
            rng = random.Random(f"{recipe.seed}-records-{mix.task}")
            train[mix.task] = rng.sample(train[mix.task], mix.records)
    training_sources = [
        Source(tasks[mix.task], RecordPool(train[mix.task]), mix.weight, mix.locality, mix.recombine, mix.worst_token)
        for mix in recipe.tasks
    ]
    validation_sources = [
        replace(source, pool=RecordPool(validation[mix.task]), recombine=0.0)
        for source, mix in zip(training_sources, recipe.tasks, strict=True)
    ]
    return training_sources, validation_sources


def _read_records(recipe: Recipe, tasks: Mapping[str, Task], data: Path) -> dict[str, list[EditRecord]]:
    """Read the records that fit each task; a file that several tasks read in the same way is read once."""
    files = dict.fromkeys((name, tasks[mix.task].columns) for mix in recipe.tasks for name in mix.files)
    by_file = {
        (name, columns): read_records(data_file(name, data), columns=columns, skip_incomplete=True)
        for name, columns in files
    }
    by_task = {}
    for mix in recipe.tasks:
        candidates = [record for name in mix.files for record in by_file[name, tasks[mix.task].columns]]
        by_task[mix.task] = fitting_records(tasks[mix.task], candidates, ", ".join(mix.files))
        if len({_subject(record) for record in by_task[mix.task]}) < 2:
            raise DataError(
                f"task {tasks[mix.task].name} has only one subject; training needs another one for validation",
                field="tasks",
            )
    return by_task


def split_validation(
    pools: Mapping[str, Sequence[EditRecord]], per_task: int, seed: int
) -> tuple[dict[str, list[EditRecord]], dict[str, list[EditRecord]]]:
    """Hold out records of each task by subject, over all tasks at once.

    Two tasks may read the same file; a subject that is held out of one is trained on in none.

    Args:
        pools: Records by task.
        per_task: Number of records to hold out per task; at most a fifth of its subjects.
        seed: Decides the draw.

    Returns:
        Training and validation records by task.
    """
    held_out: set[str] = set()
    for name, records in sorted(pools.items()):
        subjects = sorted({_subject(record) for record in records})
        random.Random(f"{seed}-{name}").shuffle(subjects)
        already = sum(_subject(record) in held_out for record in records)
        held_out.update(subjects[: max(0, min(per_task, max(1, len(subjects) // 5)) - already)])
    train = {name: [r for r in records if _subject(r) not in held_out] for name, records in pools.items()}
    validation = {name: [r for r in records if _subject(r) in held_out][:per_task] for name, records in pools.items()}
    return train, validation


def _subject(record: EditRecord) -> str:
    return record.request.subject or record.request.prompt
