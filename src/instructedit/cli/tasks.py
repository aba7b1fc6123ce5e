"""``instructedit tasks``: list the tasks, or show one."""

from __future__ import annotations

from typing import Annotated

import typer

from instructedit.cli.console import emit_json, out, styled, table
from instructedit.cli.options import JsonFile
from instructedit.data.schemas.registry import SCHEMAS
from instructedit.tasks.loading import TASKS_VARIABLE, known_tasks, listed_tasks, load_task
from instructedit.tasks.task import Task


def tasks(
    name: Annotated[
        str | None, typer.Argument(help="Name or YAML file of the task to show. Default: list all tasks.")
    ] = None,
    json_: JsonFile = None,
) -> None:
    """List the tasks, or show one with its instruction templates.

    The environment variable INSTRUCTEDIT_TASKS adds the tasks of a folder.
    """
    if name is not None:
        task = load_task(name)
        if not emit_json(task.model_dump(mode="json"), json_):
            _print_task(task)
        return
    if emit_json({key: task.model_dump(mode="json") for key, task in known_tasks().items()}, json_):
        return
    rows = table("task", "summary", "in scope", "out of scope", "held out")
    for task in listed_tasks():
        rows.add_row(
            task.name,
            task.summary,
            ", ".join(task.in_scope),
            ", ".join(task.out_of_scope),
            "yes" if task.held_out else "no",
        )
    out.print(rows)
    out.print(f"Known formats of data files: {', '.join(schema.name for schema in SCHEMAS)}.")
    out.print(f"To add a task, give its YAML file, or set {TASKS_VARIABLE} to a folder of YAML files (docs/tasks.md).")


def _print_task(task: Task) -> None:
    out.print(styled((task.name, "bold"), f": {task.summary}"))
    out.print(f"in scope (must change): {', '.join(task.in_scope)}")
    out.print(f"out of scope (must not change): {', '.join(task.out_of_scope)}")
    for kind, value in task.files:
        names = (value,) if isinstance(value, str) else value or ()
        if names:
            out.print(f"{kind} edits: {', '.join(names)}")
    held_out = task.instructions.held_out_templates
    for number, template in enumerate(task.instructions.all_templates, start=1):
        mark = " (held out from training)" if template in held_out else ""
        out.print(f"{number:>3}. {template}{mark}")
