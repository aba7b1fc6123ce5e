"""Options that say what is edited, and what follows from them: requests and their tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from instructedit.cli.console import err
from instructedit.errors import DataError

if TYPE_CHECKING:
    from instructedit.editors.base import Editor
    from instructedit.instructions.routing import Route
    from instructedit.models.language_model import LanguageModel
    from instructedit.records import EditRequest
    from instructedit.tasks.task import Task

Prompt = Annotated[str | None, typer.Option(help="Text before the answer, for example `Jimi Hendrix plays the`.")]
Target = Annotated[str | None, typer.Option(help="The new answer.")]
Subject = Annotated[
    str | None,
    typer.Option(help="The entity that the prompt is about, spelled as in the prompt. ROME and MEMIT need it."),
]
TaskName = Annotated[
    str | None,
    typer.Option(
        help="Task of the edit: a name from `instructedit tasks`, or a task's YAML file. Without it the task whose "
        "requests are most similar is used, or a neutral instruction if none is similar."
    ),
]
Instruction = Annotated[
    str | None,
    typer.Option(
        help="Instruction in your own words: what to change, and what must stay the same. It replaces the task's name "
        "and instruction template."
    ),
]
NoInstruction = Annotated[
    bool,
    typer.Option("--no-instruction", help="Edit without an instruction, except for requests that have their own."),
]
Label = Annotated[str | None, typer.Option(help="Sentiment of the target for the task convsent: positive or negative.")]
RequestFile = Annotated[
    Path | None,
    typer.Option(
        help="Make several edits at once: a JSON Lines file with the fields prompt, target and optionally subject, "
        "task, instruction, ground_truth and label. --task and --instruction apply to requests without their own. The "
        "report shows which edits succeeded."
    ),
]

Combine = Annotated[
    Literal["distil", "merge", "sum"],
    typer.Option(
        help="How several edits become one change; each is made for the unedited base model. `merge`: by the normal "
        "equation over their keys. `distil`: the same, then trained to do what each edit does alone, so that a hundred "
        "hold together with their paraphrases, which takes seconds for every edit. `sum`: added up, for a few."
    ),
]


def requests_of(
    file: Path | None,
    prompt: str | None,
    target: str | None,
    subject: str | None,
    label: str | None,
    instruction: str | None,
) -> list[EditRequest]:
    """Return the requests of a file, or the single request of the command line."""
    from instructedit.editors.editing import read_requests
    from instructedit.records import EditRequest

    if file is not None:
        return [
            request
            if request.instruction or not instruction
            else request.model_copy(update={"instruction": instruction})
            for request in read_requests(file)
        ]
    if not (prompt and prompt.strip() and target and target.strip()):
        raise DataError("an edit needs both --prompt and --target, and neither may be blank")
    return [EditRequest(prompt=prompt, target=target, subject=subject, label=label, instruction=instruction)]


def tasks_of(
    requests: list[EditRequest], task: str | None, template_file: Path | None, language_model: LanguageModel
) -> tuple[list[Task | None], list[str]]:
    """Return the task of each request, with a note for each task that was chosen by similarity."""
    from instructedit.instructions.routing import Router
    from instructedit.instructions.template_files import load_task_with_templates
    from instructedit.tasks.loading import free_text_task, load_task

    if template_file is not None and task is None:
        raise DataError("--template-file also needs --task")
    chosen = None if task is None else load_task_with_templates(task, template_file)
    unnamed = [request for request in requests if request.task is None and request.instruction is None]
    routes = iter(Router(language_model)(unnamed) if unnamed and chosen is None else [])
    tasks: list[Task | None] = []
    notes: list[str] = []
    for request in requests:
        if request.task is not None:
            tasks.append(load_task(request.task))
        elif chosen is not None:
            tasks.append(chosen)
        elif request.instruction is not None:
            tasks.append(free_text_task())
        else:
            route = next(routes)
            tasks.append(route.task)
            notes.append(_routing_note(request.prompt, route))
    return tasks, notes


def print_notes(notes: Sequence[str], requests: Sequence[EditRequest], editor: Editor) -> None:
    """Print how tasks were chosen, or that the editor does not read the instructions that were given."""
    for note in notes if editor.reads_instruction else ():
        err.print(note)
    if not editor.reads_instruction and any(request.instruction for request in requests):
        err.print(f"warning: {editor.name} does not read instructions, so the given one has no effect")


def _routing_note(prompt: str, route: Route) -> str:
    from instructedit.instructions.routing import SIMILARITY_THRESHOLD
    from instructedit.tasks.loading import FREE_TEXT, NEUTRAL_TEXT

    if route.task.name == FREE_TEXT:
        return (
            f"{prompt!r} is not similar to the requests of any task (similarity: {route}; at least "
            f"{SIMILARITY_THRESHOLD} is required), so the neutral instruction is used: {NEUTRAL_TEXT} Use --task or "
            "--instruction to choose"
        )
    return f"task {route.task.name} chosen for {prompt!r} (similarity: {route}); use --task to choose another"
