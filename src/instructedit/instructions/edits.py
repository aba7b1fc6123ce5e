"""Which edits instructions are tried on: never test edits, and none that the editor was trained on."""

from __future__ import annotations

import random
from pathlib import Path

from instructedit.data import data_folder
from instructedit.editors.files import training_of
from instructedit.errors import DataError, RecipeError
from instructedit.evaluation.demonstration import OWN_FILES
from instructedit.records import EditRecord
from instructedit.tasks.own_edits import EDITS
from instructedit.tasks.readers import read_records
from instructedit.tasks.task import Task, fitting
from instructedit.training.loop import read_sources
from instructedit.training.recipe import parse_recipe

#: Edits of tasks that no editor is trained on; apart from the test files.
HELD_OUT_FILES = {"zsre": "zsre/zsre_mend_train-1k.json", "implications": "wiki_counterfact/train_cf.json"}


def validation_edits(
    task: Task, editor: str, count: int, seed: int, file: Path | None = None
) -> tuple[list[EditRecord], str]:
    """At most ``count`` edits to try instructions on, in a random order, and a word on where they come from.

    In this order: ``file``; what the editor's training held out; a file of a held-out task; the edits that ship.

    Raises:
        DataError: there are none for this task.
    """
    records, source = _found(task, editor, file)
    records = fitting(task, records, source)
    return random.Random(f"{seed}-validation").sample(records, min(count, len(records))), source


def _found(task: Task, editor: str, file: Path | None) -> tuple[list[EditRecord], str]:
    if file is not None:
        return read_records(file, task.form, skip_incomplete=True), str(file)
    data = data_folder()
    if data is not None and task.name in HELD_OUT_FILES:
        name = HELD_OUT_FILES[task.name]
        return read_records(data / name, skip_incomplete=True), name
    raw = training_of(editor).get("recipe")
    if data is not None and raw is not None:
        try:
            _, validation = read_sources(parse_recipe(raw), data)
        except RecipeError:
            validation = []  # of a recipe that this version no longer reads
        for source in validation:
            if source.task.name == task.name:
                return list(source.pool.records), "held out of the editor's training"
    if task.name in OWN_FILES:
        return read_records(EDITS / OWN_FILES[task.name]), f"own/{OWN_FILES[task.name]}"
    raise DataError(f"no validation edits are known for task {task.name}; give a file with --data")
