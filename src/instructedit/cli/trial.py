"""Options and preparation that ``score`` and ``optimize`` share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from instructedit.instructions.trial import Trial
    from instructedit.models.language_model import LanguageModel
    from instructedit.tasks.task import Task

TaskName = Annotated[str, typer.Option("--task", help="Name or YAML file of the task.")]
ValidationFile = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="File of validation edits. Default: the validation edits of the editor's training.",
    ),
]
Seed = Annotated[int, typer.Option(help="Random seed for the edits and the offline proposer.")]


def make_trial(
    task: Task, language_model: LanguageModel, editor: str, edits: int, seed: int, data: Path | None
) -> tuple[Trial, str]:
    """Return the trial of an editor on validation edits, and a description of where these come from."""
    from instructedit.data.pool import RecordPool
    from instructedit.editors.lookup import load_editor
    from instructedit.evaluation.runner import ADDED_UNRELATED
    from instructedit.instructions.trial import Trial
    from instructedit.instructions.validation_edits import validation_edits

    records, source = validation_edits(task, editor, edits, seed, data)
    if task.is_wider:  # every template has to be scored on the same probes, whatever else is scored with it
        pool = RecordPool(records)
        records = [pool.completed(record, ADDED_UNRELATED, seed) for record in records]
    return Trial(load_editor(editor, language_model), language_model, task, records, seed), source
