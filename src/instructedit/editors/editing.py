"""One call from requests to a delta that can be kept: what the command line and other programs use."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from pydantic import ValidationError

from instructedit.deltas.delta import Delta, DeltaBatch, DeltaMetadata
from instructedit.editors.base import Editor
from instructedit.errors import EditorError
from instructedit.models.language_model import LanguageModel
from instructedit.records import EditRequest
from instructedit.tasks.readers import read_rows
from instructedit.tasks.task import FREE_TEXT, Task, free_text


def make_edit(
    editor: Editor,
    language_model: LanguageModel,
    requests: Sequence[EditRequest],
    tasks: Task | Sequence[Task | None] | None,
) -> Delta:
    """The sum of the deltas of ``requests``, each made by itself under its instruction.

    A request's own instruction decides alone: it is read behind a neutral name, whatever the task.

    Args:
        tasks: of all requests, or one a request; a request of the task None that brings no instruction gets none.

    Raises:
        DataError: an instruction has a placeholder that its request does not fill.
        EditorError: a request cannot be edited, or the editor's edits are not weight deltas.
    """
    each = [tasks] * len(requests) if isinstance(tasks, Task) or tasks is None else list(tasks)
    texts = [instruction_of(request, task) for request, task in zip(requests, each, strict=True)]
    batch = editor.edit(language_model, requests, texts)
    if not isinstance(batch, DeltaBatch):
        raise EditorError(f"{editor.name} does not change weights, so its edits cannot be kept as a delta")
    versions = {name: version(name) for name in ("instructedit", "torch", "transformers")}
    deltas = [
        batch.select(
            index,
            DeltaMetadata(
                base=language_model.fingerprint,
                source=language_model.source,
                editor=editor.name,
                requests=(_with_task(request, task),),
                instruction=text,
                versions=versions,
            ),
        )
        for index, (request, text, task) in enumerate(zip(requests, texts, each, strict=True))
    ]
    total = deltas[0]
    for delta in deltas[1:]:
        total = total + delta
    return total


def instruction_of(request: EditRequest, task: Task | None) -> str | None:
    """The rendered instruction of a request: its own text behind a neutral name, else its task's first description.

    Raises:
        DataError: the text has a placeholder that the request does not fill.
    """
    if request.instruction is not None:
        return free_text().instructions.render(request.instruction, request)
    return None if task is None else task.instructions.render(task.instructions.descriptions[0], request)


def _with_task(request: EditRequest, task: Task | None) -> EditRequest:
    return request if task is None or task.name == FREE_TEXT else request.model_copy(update={"task": task.name})


def read_requests(path: str | Path) -> list[EditRequest]:
    """Edit requests from a JSON or JSON Lines file with the fields of :class:`EditRequest`.

    Raises:
        DataError: unreadable, or a record is not a request; the record and field are named.
    """
    requests = []
    for row in read_rows(Path(path)):
        try:
            requests.append(EditRequest.model_validate(row.fields))
        except ValidationError as error:
            first = error.errors()[0]
            raise row.error(".".join(map(str, first["loc"])), first["msg"]) from None
    return requests
