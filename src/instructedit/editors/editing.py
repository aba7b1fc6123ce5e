"""From requests to deltas that can be saved, each edit by itself; :mod:`instructedit.merging` makes one of several."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from pydantic import ValidationError

from instructedit.data.rows import read_rows
from instructedit.deltas.delta import Delta, DeltaBatch, DeltaMetadata
from instructedit.editors.base import Editor
from instructedit.errors import EditorError, location_text, shorten
from instructedit.instructions.templates import NEUTRAL_NAME
from instructedit.models.language_model import LanguageModel, check_language_model
from instructedit.records import EditRequest
from instructedit.storage.reading import short_repr
from instructedit.tasks.loading import FREE_TEXT, free_text_task, load_task
from instructedit.tasks.task import Task

#: More requests are edited in several batches.
EDITS_AT_A_TIME = 32


def make_edits(
    editor: Editor,
    language_model: LanguageModel,
    requests: Sequence[EditRequest],
    tasks: Task | str | Path | Sequence[Task | None] | None,
) -> list[Delta]:
    """Return the deltas of ``requests``, each made by itself under its instruction.

    A request's own instruction takes the place of its task's; it is rendered with a neutral task name.

    Args:
        editor: that makes the deltas.
        language_model: its base model.
        requests: what to change.
        tasks: of all requests, the task itself, its name or its YAML file; or one task per request, in which a request
            of the task None without an instruction of its own gets none. None takes the task that each request names;
            a request that names none gets no instruction either.

    Raises:
        DataError: no task has that name, or an instruction has a placeholder that its request does not fill.
        EditorError: requests or tasks are not what they have to be, a request cannot be edited, or the editor's edits
            are not weight deltas.
    """
    check_language_model(language_model)
    each = _tasks_of(_checked(requests), tasks)
    texts = [instruction_of(request, task) for request, task in zip(requests, each, strict=True)]
    versions = {name: version(name) for name in ("instructedit", "torch", "transformers")}
    deltas: list[Delta] = []
    for start in range(0, len(requests), EDITS_AT_A_TIME):
        part = slice(start, start + EDITS_AT_A_TIME)
        batch = editor.edit(language_model, requests[part], texts[part])
        if not isinstance(batch, DeltaBatch):
            raise EditorError(f"{editor.name} does not change weights, so its edits cannot be stored as a delta")
        for index, (request, text, task) in enumerate(zip(requests[part], texts[part], each[part], strict=True)):
            metadata = DeltaMetadata(
                base=language_model.fingerprint,
                architecture=language_model.architecture,
                sketch=language_model.sketch,
                source=language_model.source,
                editor=editor.name,
                requests=(_with_task(request, task),),
                instruction=text if editor.reads_instruction else None,
                versions=versions,
            )
            deltas.append(batch.select(index, metadata))
    return deltas


def _checked(requests: object) -> Sequence[EditRequest]:
    """Return the requests, or raise an EditorError where they are no list of EditRequest."""
    if isinstance(requests, (EditRequest, Mapping, str)) or not isinstance(requests, Sequence):
        raise EditorError(f"requests must be a list of EditRequest, not {type(requests).__name__}; use [request]")
    if not requests:
        raise EditorError("requests is empty; give at least one EditRequest")
    for index, request in enumerate(requests):
        if not isinstance(request, EditRequest):
            raise EditorError(
                f"request {index + 1} of {len(requests)} is a {type(request).__name__}, not an EditRequest; use "
                "EditRequest(prompt=…, target=…)"
            )
    return requests


def _tasks_of(requests: Sequence[EditRequest], tasks: object) -> list[Task | None]:
    """Return each request's task; raises an EditorError where ``tasks`` is neither one task nor one per request."""
    if tasks is None:
        return [None if request.task is None else load_task(request.task) for request in requests]
    if isinstance(tasks, (str, Path)):
        tasks = load_task(tasks)
    if isinstance(tasks, Task):
        return [tasks] * len(requests)
    if not isinstance(tasks, Sequence) or not all(task is None or isinstance(task, Task) for task in tasks):
        raise EditorError(f"tasks must be a Task, the name of one, or a list of Task, not {type(tasks).__name__}")
    if len(tasks) != len(requests):
        raise EditorError(
            f"there are {len(tasks)} tasks for {len(requests)} requests; give one task, or one per request"
        )
    return list(tasks)


def instruction_of(request: EditRequest, task: Task | None) -> str | None:
    """Return the rendered instruction of a request: its own with a neutral name, else its task's first description.

    Raises:
        DataError: the text has a placeholder that the request does not fill.
    """
    if request.instruction is not None:
        return (task or free_text_task()).instructions.render(request.instruction, request, NEUTRAL_NAME)
    return None if task is None else task.instructions.render(task.instructions.templates[0], request)


def _with_task(request: EditRequest, task: Task | None) -> EditRequest:
    """Return the request with the name of its task."""
    return request if task is None or task.name == FREE_TEXT else request.model_copy(update={"task": task.name})


#: Names that other data sets and people give to the fields of a request.
ALIASES = {
    "target": ("target_new", "new_target", "answer", "new_answer", "object", "completion", "alt", "output", "value"),
    "prompt": ("text", "question", "query", "src", "input", "sentence", "fact"),
    "subject": ("entity", "ent", "topic"),
    "ground_truth": ("target_true", "old_answer", "old_target", "truth", "old"),
    "instruction": ("description",),
    "label": ("sentiment",),
}


def read_requests(path: str | Path) -> list[EditRequest]:
    """Read edit requests from a JSON or JSON Lines file with the fields of :class:`EditRequest`.

    Raises:
        DataError: unreadable, or a record is not a request; the message names the record, the field, and for an unknown
            field the one that was probably meant.
    """
    requests = []
    for row in read_rows(Path(path)):
        try:
            requests.append(EditRequest.model_validate(row.fields))
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            hint = _hint(row.fields, str(first["loc"][0])) if first["loc"] else ""
            raise row.error(location_text(first["loc"]), shorten(first["msg"]) + hint) from None
    return requests


def _hint(given: Mapping[str, object], field: str) -> str:
    """Return a hint at the field that was probably meant, where one is missing or is none of a request's."""
    fields = EditRequest.model_fields.keys()
    unknown = [name for name in given if name not in fields]
    if field in fields and field not in given:
        name = next((name for name in unknown if _meant(name) == field), None)
        return f"; the record has {short_repr(name)}: did you mean `{field}`?" if name is not None else ""
    if field in unknown:
        near = _meant(field)
        known = f"known fields: {', '.join(fields)}"
        return f": did you mean `{near}`?" if near is not None and near not in given else f"; {known}"
    return ""


def _meant(name: str) -> str | None:
    """Return the request's field that other data sets call by this name, or that is spelled alike."""
    plain = name.strip().lower().replace("-", "_").replace(" ", "_")
    field_of = {alias: field for field, aliases in ALIASES.items() for alias in (*aliases, field)}
    near = difflib.get_close_matches(plain, field_of, n=1, cutoff=0.8) if len(plain) < 100 else []
    return field_of[near[0]] if near else None
