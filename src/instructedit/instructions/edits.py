"""Which edits instructions are tried on: never test edits, and none that the editor was trained on."""

from __future__ import annotations

import random
from pathlib import Path

from instructedit.data.locations import EDITS, data_file, data_folder
from instructedit.data.readers import read_records
from instructedit.editors.saving import training_of
from instructedit.errors import DataError, RecipeError
from instructedit.evaluation.demonstration import OWN_FILES
from instructedit.records import EditRecord
from instructedit.tasks.task import Task, fitting
from instructedit.training.data import read_sources
from instructedit.training.recipe import parse_recipe

#: Edits of a task that no editor is trained on; apart from its test file.
HELD_OUT_FILES = {"zsre": "zsre/zsre_mend_train-1k.json"}


def validation_edits(
    task: Task, editor: str, count: int, seed: int, file: Path | None = None
) -> tuple[list[EditRecord], str]:
    """At most ``count`` edits to try instructions on, in a random order, and a word on where they come from.

    In this order: ``file``; the file of a held-out task; what the editor's training held out, of this task or, for a
    task that was not trained on, of any; the edits that ship.

    Raises:
        DataError: there are none for this task.
    """
    records, source = _found(task, editor, file)
    records = fitting(task, records, source)
    return random.Random(f"{seed}-validation").sample(records, min(count, len(records))), source


def _found(task: Task, editor: str, file: Path | None) -> tuple[list[EditRecord], str]:
    if file is not None:
        return read_records(data_file(file), task.form, skip_incomplete=True), str(file)
    data = data_folder()
    why = "the data sets are not at hand"
    if data is not None:
        if task.name in HELD_OUT_FILES:
            name = HELD_OUT_FILES[task.name]
            return read_records(data / name, skip_incomplete=True), name
        records, why = _held_out(task, editor, data)
        if records:
            return records, "held out of the editor's training"
    if task.name in OWN_FILES:
        return read_records(EDITS / OWN_FILES[task.name]), f"own/{OWN_FILES[task.name]}, as {why}"
    raise DataError(f"no validation edits are known for task {task.name}, as {why}; give a file with --data")


def _held_out(task: Task, editor: str, data: Path) -> tuple[list[EditRecord], str]:
    """Records that the editor's training held out, or why there are none."""
    raw = training_of(editor).get("recipe")
    if raw is None:
        return [], f"the editor {editor} does not say what it was trained on"
    try:
        _, validation = read_sources(parse_recipe(raw), data)
    except RecipeError:
        return [], f"the recipe of the editor {editor} is one that this version does not read"
    own = next((source.pool.records for source in validation if source.task.name == task.name), None)
    if own is not None:
        return list(own), ""
    # Subjects are held out of all tasks at once, so what any of them holds out no training has seen.
    pooled = {record.model_dump_json(): record for source in validation for record in source.pool.records}
    return [record for record in pooled.values() if task.fits(record)], "nothing of the task was held out"
