"""``instructedit tasks``: what kinds of edits there are."""

from __future__ import annotations

from typing import Annotated

import typer

from instructedit.cli.console import emit_json, out, styled, table
from instructedit.cli.options import JsonFile
from instructedit.data.readers import FORMS
from instructedit.tasks.task import load_task, shipped_tasks


def tasks(
    name: Annotated[str | None, typer.Argument(help="A task's name or YAML file; without it all are listed.")] = None,
    json_: JsonFile = None,
) -> None:
    """List the tasks, or show one with its ten instructions (the tenth is never seen in training)."""
    if name is not None:
        task = load_task(name)
        if json_ is not None:
            emit_json(task.model_dump(mode="json"), json_)
            return
        out.print(styled((task.name, "bold"), f": {task.summary}"))
        out.print(f"must change: {', '.join(task.change)}; must stay: {', '.join(task.stay)}")
        for number, description in enumerate(task.instructions.descriptions, start=1):
            out.print(f"{number:>3}. {description}")
        return
    found = shipped_tasks()
    if json_ is not None:
        emit_json({key: task.model_dump(mode="json") for key, task in found.items()}, json_)
        return
    figures = table("task", "what it is", "must change", "must stay", "held out")
    for task in found.values():
        figures.add_row(
            task.name, task.summary, ", ".join(task.change), ", ".join(task.stay), "yes" if task.held_out else "no"
        )
    out.print(figures)
    out.print(f"Record forms that are read: {', '.join(dict.fromkeys(form.name for form in FORMS))}.")
