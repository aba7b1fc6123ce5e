"""The edits that instruction templates are chosen on: never test edits, and none that the editor was trained on."""

from __future__ import annotations

import random
from pathlib import Path

from instructedit.data.locations import data_folder
from instructedit.editors.saving import training_of
from instructedit.errors import DataError, RecipeError
from instructedit.records import EditRecord
from instructedit.tasks.edits import fitting_records, is_at_hand, read_edits
from instructedit.tasks.task import Task
from instructedit.training.data import read_sources
from instructedit.training.recipe import parse_recipe


def validation_edits(
    task: Task, editor: str, count: int, seed: int, file: Path | None = None
) -> tuple[list[EditRecord], str]:
    """Return at most ``count`` edits to choose templates on, in a random order, and a description of their source.

    The first of these that there is: ``file``; the task's validation file; what the editor's training held out, of
    this task or, for a task that it was not trained on, of any; the task's bundled edits.

    Raises:
        DataError: there are none for this task.
    """
    records, source = _read(task, editor, file)
    return random.Random(f"{seed}-validation").sample(records, min(count, len(records))), source


def _read(task: Task, editor: str, file: Path | None) -> tuple[list[EditRecord], str]:
    if file is not None:
        return read_edits(task, file, skip_incomplete=True), str(file)
    data = data_folder()
    validation, bundled = task.files.validation, task.files.bundled
    if validation is not None and (data is not None or is_at_hand(validation, data)):
        return read_edits(task, validation, data or Path(), skip_incomplete=True), validation
    reason = "the data sets were not found"
    if data is not None:
        records, reason = _held_out(task, editor, data)
        if records:
            source = "held out of the editor's training"
            return fitting_records(task, records, source), source
    if bundled is not None:
        return read_edits(task, bundled, data or Path()), f"{bundled}, because {reason}"
    raise DataError(f"there are no validation edits for task {task.name}, because {reason}; give a file with --data")


def _held_out(task: Task, editor: str, data: Path) -> tuple[list[EditRecord], str]:
    """Return the records that the editor's training held out, or why there are none."""
    raw = training_of(editor).get("recipe")
    if raw is None:
        return [], f"the editor {editor} does not contain its training recipe"
    try:
        _, validation = read_sources(parse_recipe(raw), data)
    except RecipeError:
        return [], f"this version cannot read the recipe of the editor {editor}"
    records = next((source.pool.records for source in validation if source.task.name == task.name), None)
    if records is not None:
        return list(records), ""
    # Subjects are held out of all tasks at once, so training has seen none of what any task holds out.
    pooled = {record.model_dump_json(): record for source in validation for record in source.pool.records}
    return [
        record for record in pooled.values() if task.fits(record)
    ], "the training of the editor held out no edits of this task"
