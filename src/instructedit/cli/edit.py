"""``instructedit edit``: change what a model says, and look at the difference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from instructedit.cli.console import emit_json, err, out, quiet_libraries
from instructedit.cli.options import BankFile, Device, DeviceMap, Dtype, EditorFile, JsonFile, Model
from instructedit.errors import DataError

if TYPE_CHECKING:
    from instructedit.models.language_model import LanguageModel
    from instructedit.records import EditRequest
    from instructedit.tasks.task import Task


def edit(
    prompt: Annotated[str | None, typer.Option(help="What is asked, up to where the answer begins.")] = None,
    target: Annotated[str | None, typer.Option(help="What the model is to say there.")] = None,
    subject: Annotated[str | None, typer.Option(help="Whom or what the prompt is about.")] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="The kind of edit: a task's name or its YAML file. Without it the best-matching one is taken."
        ),
    ] = None,
    instruction: Annotated[
        str | None, typer.Option(help="Describe the edit and its scope in your own words instead of the task's.")
    ] = None,
    bank: BankFile = None,
    label: Annotated[str | None, typer.Option(help="ConvSent: positive or negative.")] = None,
    requests: Annotated[
        Path | None,
        typer.Option(
            help="Many edits at once: a JSON Lines file with prompt, target, [subject, …]. "
            "--instruction is for all that bring none."
        ),
    ] = None,
    apply: Annotated[
        list[Path] | None, typer.Option(help="Apply this delta instead of making one; may be given several times.")
    ] = None,
    ask: Annotated[list[str] | None, typer.Option(help="Also show this prompt before and after; repeatable.")] = None,
    out_file: Annotated[Path | None, typer.Option("--out", help="Write the delta here (safetensors).")] = None,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Compress the delta to this rank; the error is shown.")
    ] = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="Length of the answers shown, in tokens.")] = 16,
    model: Model = "bundled",
    editor: EditorFile = "bundled",
    dtype: Dtype = "float32",
    device: Device = None,
    device_map: DeviceMap = None,
    json_: JsonFile = None,
) -> None:
    """Edit a model, show its answers before and after, and keep the edit as a small file.

    Make one: `instructedit edit --subject "Eiffel Tower" --prompt "Eiffel Tower is located in" --target Rome`.
    Use it later: `instructedit edit --apply e.safetensors --ask "Where is the Eiffel Tower?"`.
    Nothing is written into the model; a delta file says for which base model it is.
    """
    quiet_libraries()
    from instructedit.deltas.files import load_delta, save_delta
    from instructedit.editors.editing import make_edit, read_requests
    from instructedit.editors.files import find_editor
    from instructedit.evaluation.generation import generate, natural_stop
    from instructedit.models.language_model import load_language_model
    from instructedit.records import EditRequest

    making = requests is not None or prompt is not None or target is not None
    if bool(apply) == making:
        raise DataError("give either an edit (--prompt and --target, or --requests) or --apply with a delta file")
    one = {"--prompt": prompt, "--target": target, "--subject": subject, "--label": label}
    if apply:
        _refuse("--apply", one | {"--task": task, "--instruction": instruction, "--bank": bank})
    wanted: list[EditRequest] = []
    if requests is not None:
        _refuse("--requests; its lines say it", one)
        wanted = [
            request
            if request.instruction or not instruction
            else request.model_copy(update={"instruction": instruction})
            for request in read_requests(requests)
        ]
    elif making:
        if not (prompt and prompt.strip() and target and target.strip()):
            raise DataError("an edit needs both --prompt and --target")
        wanted = [EditRequest(prompt=prompt, target=target, subject=subject, label=label, instruction=instruction)]
    language_model = load_language_model(model, dtype=dtype, device=device, device_map=device_map)
    if apply:
        deltas = [load_delta(path) for path in apply]
        delta = deltas[0]
        for other in deltas[1:]:
            delta = delta + other
    else:
        tasks, said = _tasks_of(wanted, task, bank, language_model)
        delta = make_edit(find_editor(editor, language_model), language_model, wanted, tasks)
        for line in said:
            err.print(line, markup=False, highlight=False)
    if rank is not None:
        delta = delta.compress(rank)
    prompts = [*(request.prompt for request in wanted), *(ask or ())]
    if apply and not prompts:
        prompts = [request.prompt for request in delta.metadata.requests]
    delta.check(language_model)
    before = generate(language_model, prompts, new_tokens=new_tokens)
    after = generate(language_model, prompts, delta=delta, new_tokens=new_tokens)
    answers = [
        {"prompt": asked, "before": natural_stop(old), "after": natural_stop(new)}
        for asked, old, new in zip(prompts, before, after, strict=True)
    ]
    if out_file is not None:
        save_delta(delta, out_file)
    result: dict[str, Any] = {
        "model": model,
        "base": language_model.fingerprint,
        "instruction": delta.metadata.instruction,
        "editor": delta.metadata.editor,
        "requests": [request.model_dump(exclude_none=True) for request in delta.metadata.requests],
        "rank": max(low.rank for low in delta.factors.values()),
        "compression_error": delta.metadata.compression_error,
        "delta": str(out_file) if out_file else None,
        "answers": answers,
    }
    if json_ is not None:
        emit_json(result, json_)
        if str(json_) == "-":
            return
    table = Table(
        "asked", "before", "after", title=f"{len(delta.metadata.requests)} edit(s) by {delta.metadata.editor}"
    )
    for row in answers:
        table.add_row(row["prompt"], row["before"], row["after"])
    out.print(table)
    if delta.metadata.instruction:
        out.print(delta.metadata.instruction, style="dim", markup=False)
    if rank is not None:
        error = delta.metadata.compression_error
        of = "is not known" if error is None else f"{error:.4f}"
        out.print(f"compressed to rank {rank}: relative error {of}")
    if out_file is not None:
        err.print(f"written to {out_file}")


def _refuse(with_what: str, options: Mapping[str, object]) -> None:
    """Options that would be ignored are refused."""
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise DataError(f"{', '.join(given)} cannot be given with {with_what}")


def _tasks_of(
    requests: list[EditRequest], task: str | None, bank: Path | None, language_model: LanguageModel
) -> tuple[list[Task], list[str]]:
    """Each request's task, and what is to be said about how it was found."""
    from instructedit.instructions.bank import task_with
    from instructedit.instructions.routing import Router
    from instructedit.tasks.task import free_text, load_task

    if task is not None or bank is not None:
        if task is None:
            raise DataError("--bank needs the --task that it was made for")
        return [task_with(task, bank)] * len(requests), []
    unnamed = [request for request in requests if request.task is None and request.instruction is None]
    routes = iter(Router(language_model)(unnamed) if unnamed else [])
    tasks, said = [], []
    for request in requests:
        if request.task is not None:
            tasks.append(load_task(request.task))
        elif request.instruction is not None:
            tasks.append(free_text())
        else:
            route = next(routes)
            tasks.append(route.task)
            said.append(f"task {route.task.name} chosen for {request.prompt!r} (alike: {route}); --task takes another")
    return tasks, said
