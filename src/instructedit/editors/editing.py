"""One call from requests to a delta that can be kept: what the command line and other programs use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from pydantic import ValidationError

from instructedit.deltas.delta import Delta, DeltaBatch, DeltaMetadata
from instructedit.editors.base import Editor
from instructedit.errors import EditorError
from instructedit.models.language_model import LanguageModel
from instructedit.records import EditRequest
from instructedit.tasks.readers import read_rows
from instructedit.tasks.task import FREE_TEXT, Task, load_task


def make_edit(
    editor: Editor,
    language_model: LanguageModel,
    requests: Sequence[EditRequest],
    tasks: Task | str | Path | Sequence[Task],
) -> Delta:
    """The sum of the deltas of ``requests``, each made by itself under its instruction.

    A request's own instruction goes before its task's first description.

    Args:
        tasks: of all requests, the task itself, its name or its YAML file; or one task a request.

    Raises:
        DataError: no task has that name, or an instruction has a placeholder that its request does not fill.
        EditorError: requests or tasks are not what they have to be, a request cannot be edited, or the editor's edits
            are not weight deltas.
    """
    each = _tasks_of(_checked(requests), tasks)
    texts = [
        task.instructions.render(request.instruction or task.instructions.descriptions[0], request)
        for request, task in zip(requests, each, strict=True)
    ]
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
                requests=(request if task.name == FREE_TEXT else request.model_copy(update={"task": task.name}),),
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


def _checked(requests: object) -> Sequence[EditRequest]:
    """Refuse what is no list of requests, before a model is run on it."""
    if isinstance(requests, (EditRequest, Mapping, str)) or not isinstance(requests, Sequence):
        raise EditorError(
            f"requests have to be a list of EditRequest, not one {type(requests).__name__}: give [request]"
        )
    if not requests:
        raise EditorError("there are no requests to make an edit of; give at least one EditRequest")
    for index, request in enumerate(requests):
        if not isinstance(request, EditRequest):
            raise EditorError(
                f"request {index + 1} of {len(requests)} is a {type(request).__name__}, not an EditRequest; make one "
                "of its fields, EditRequest(prompt=…, target=…)"
            )
    return requests


def _tasks_of(requests: Sequence[EditRequest], tasks: object) -> list[Task]:
    """Each request's task."""
    if isinstance(tasks, (str, Path)):
        tasks = load_task(tasks)
    if isinstance(tasks, Task):
        return [tasks] * len(requests)
    if not isinstance(tasks, Sequence) or not all(isinstance(task, Task) for task in tasks):
        raise EditorError(f"tasks have to be one Task or its name, or a list of Task, not {type(tasks).__name__}")
    if len(tasks) != len(requests):
        raise EditorError(f"there are {len(tasks)} tasks for {len(requests)} requests; give one for all, or one each")
    return list(tasks)


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
