"""The edits of a task's files."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from instructedit.data.locations import BUNDLED_PREFIX, data_file, needs_data_folder
from instructedit.data.readers import read_records
from instructedit.errors import DataError
from instructedit.records import EditRecord
from instructedit.tasks.task import Task


def read_edits(task: Task, name: str | Path, data: Path = Path(), *, skip_incomplete: bool = False) -> list[EditRecord]:
    """Return the edits of a file that the task can be evaluated on.

    Args:
        task: says how the file is read (``record_schema``, ``columns``) and which records fit.
        name: ``bundled/x``, or a path relative to ``data``.
        data: the data folder; default the current folder.
        skip_incomplete: leave out records that lack a field instead of raising.

    Raises:
        DataError: the file cannot be read, or no record fits the task.
    """
    if str(name).startswith(BUNDLED_PREFIX):
        records = read_records(data_file(name))  # complete records in this project's own schema
    else:
        records = read_records(
            data_file(name, data), task.record_schema, columns=task.columns, skip_incomplete=skip_incomplete
        )
    return fitting_records(task, records, name)


def fitting_records(task: Task, records: Sequence[EditRecord], file: object) -> list[EditRecord]:
    """Return the records that have what the task needs.

    Raises:
        DataError: none has.
    """
    fitting = [record for record in records if task.fits(record)]
    if not fitting:
        needed = [str(kind) for kind in task.portability_in_scope] + ["ground_truth"] * task.forgets
        raise DataError(f"no record has the fields that task {task.name} needs ({', '.join(needed)})", file=file)
    return fitting


def sample_test_edits(task: Task, data: Path | None, count: int, seed: int) -> tuple[list[EditRecord], str]:
    """Return edits of the task's test file, or of its bundled file where the data folder lacks the former.

    Args:
        task: whose edits.
        data: the data folder, None where there is none.
        count: at most this many, drawn at random.
        seed: seed of the draw.

    Returns:
        The edits, and the name of their file.

    Raises:
        DataError: the task has no file that is at hand.
    """
    for name in (task.files.test, task.files.bundled):
        if name is not None and is_at_hand(name, data):
            edits = read_edits(task, name, data or Path())
            return random.Random(seed).sample(edits, count) if count < len(edits) else edits, name
    raise DataError(
        f"there are no test edits of task {task.name}: its YAML names no test file, or the data folder lacks it"
    )


def is_at_hand(name: str, data: Path | None) -> bool:
    """Return whether a data file can be read: it is bundled, has a whole path, or is in the data folder."""
    if data is None and needs_data_folder(name):
        return False
    return data_file(name, data or Path()).is_file()
