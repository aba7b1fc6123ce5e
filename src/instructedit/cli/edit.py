"""``instructedit edit``: change what a model says, and look at the difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instructedit.cli.console import emit_json, err, out, quiet_libraries, table
from instructedit.cli.options import Device, DeviceMap, Dtype, EditorFile, JsonFile, Model, TemplateFile, writable
from instructedit.errors import DataError

if TYPE_CHECKING:
    from instructedit.deltas.delta import Delta
    from instructedit.evaluation.edit_report import EditReport
    from instructedit.models.language_model import LanguageModel
    from instructedit.records import EditRequest
    from instructedit.tasks.task import Task

#: Warnings about single requests that are printed at most.
WARNINGS = 5


def edit(
    prompt: Annotated[str | None, typer.Option(help="The text before the answer.")] = None,
    target: Annotated[str | None, typer.Option(help="The new answer.")] = None,
    subject: Annotated[str | None, typer.Option(help="The entity that the prompt is about, as spelt there.")] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="The kind of edit: a task's name or its YAML file. Without it the best-matching one is taken, or a "
            "neutral instruction where none matches."
        ),
    ] = None,
    instruction: Annotated[
        str | None,
        typer.Option(
            help="Describe the edit and its scope in your own words. They decide alone: no task's name or text is "
            "read beside them."
        ),
    ] = None,
    no_instruction: Annotated[
        bool, typer.Option("--no-instruction", help="Edit without any instruction, where a request brings none.")
    ] = False,
    template_file: TemplateFile = None,
    label: Annotated[str | None, typer.Option(help="ConvSent: positive or negative.")] = None,
    requests: Annotated[
        Path | None,
        typer.Option(
            help="Many edits at once: a JSON Lines file with prompt, target, [subject, …]. "
            "--instruction is for all that bring none. Their deltas are added up, which holds for a few edits only; "
            "the report says which took."
        ),
    ] = None,
    apply: Annotated[
        list[Path] | None, typer.Option(help="Apply this delta instead of making one; may be given several times.")
    ] = None,
    ask: Annotated[list[str] | None, typer.Option(help="Also show this prompt before and after; repeatable.")] = None,
    out_file: Annotated[
        Path | None, typer.Option("--out", callback=writable, help="Write the delta here (safetensors).")
    ] = None,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Compress the delta to this rank; the error is shown.")
    ] = None,
    require_success: Annotated[
        bool, typer.Option("--require-success", help="Exit with code 1 if any edit did not take.")
    ] = False,
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

    Every edit is reported: whether it took (free generation gives the target), the probability of the new and the old
    answer before and after, answers to paraphrases, and which of 24 unrelated answers changed.
    """
    quiet_libraries()
    from instructedit.deltas.saving import load_delta, save_delta
    from instructedit.editors.editing import make_edit, read_requests
    from instructedit.editors.saving import find_editor
    from instructedit.evaluation.edit_report import report_edit
    from instructedit.evaluation.generation import generate, natural_stop
    from instructedit.models.language_model import load_language_model
    from instructedit.records import EditRequest

    making = requests is not None or prompt is not None or target is not None
    if bool(apply) == making:
        raise DataError("give either an edit (--prompt and --target, or --requests) or --apply with a delta file")
    one: dict[str, object] = {"--prompt": prompt, "--target": target, "--subject": subject, "--label": label}
    texts: dict[str, object] = {
        "--task": task,
        "--instruction": instruction,
        "--template-file": template_file,
        "--no-instruction": no_instruction or None,
    }
    if apply:
        _refuse("--apply", one | texts)
    if instruction is not None and not instruction.strip():
        raise DataError(
            "--instruction is empty. Leave it out to take the task's text, or give --no-instruction to edit without any"
        )
    if no_instruction:
        _refuse("--no-instruction", {key: value for key, value in texts.items() if key != "--no-instruction"})
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
    method = None
    if apply:
        deltas = [load_delta(path) for path in apply]
        delta = deltas[0]
        for other in deltas[1:]:
            delta = delta + other
    else:
        tasks, notes = (
            ([None] * len(wanted), []) if no_instruction else _tasks_of(wanted, task, template_file, language_model)
        )
        method = find_editor(editor, language_model)
        delta = make_edit(method, language_model, wanted, tasks)
        for line in notes:
            err.print(line)
    if rank is not None:
        delta = delta.compress(rank)
    delta.check(language_model)
    report = report_edit(language_model, delta, method, new_tokens=new_tokens)
    asked = [text for text in ask or () if text not in {each.answer.prompt for each in report.requests}]
    before = generate(language_model, asked, new_tokens=new_tokens)
    after = generate(language_model, asked, delta=delta, new_tokens=new_tokens)
    shown = list(zip(asked, map(natural_stop, before), map(natural_stop, after), strict=True))
    if out_file is not None:
        save_delta(delta, out_file)
    answers = [(each.answer.prompt, each.answer.before, each.answer.after) for each in report.requests] + shown
    result: dict[str, Any] = {
        "model": model,
        "base": language_model.fingerprint,
        "instruction": delta.metadata.instruction,
        "editor": delta.metadata.editor,
        "requests": [request.model_dump(exclude_none=True) for request in delta.metadata.requests],
        "rank": max(low.rank for low in delta.factors.values()),
        "compression_error": delta.metadata.compression_error,
        "delta": str(out_file) if out_file else None,
        "answers": [dict(zip(("prompt", "before", "after"), row, strict=True)) for row in answers],
        "report": report.as_dict(),
    }
    if json_ is not None:
        emit_json(result, json_)
    if str(json_) != "-":
        _show(report, shown, delta)
        if rank is not None:
            error = delta.metadata.compression_error
            stated = "is not known" if error is None else f"{error:.4f}"
            out.print(f"compressed to rank {rank}: relative error {stated}")
        if out_file is not None:
            err.print(f"written to {out_file}")
    if require_success and not report.succeeded:
        raise typer.Exit(1)


def _show(report: EditReport, shown: Sequence[tuple[str, str, str]], delta: Delta) -> None:
    """Print the report: a row an answer, then what else moved, then the warnings."""
    title = f"{len(report.requests)} edit(s) by {delta.metadata.editor}"
    rows = table("prompt", "before", "after", "took", "P(target)", "P(old answer)", title=title)
    for each in report.requests:
        answer = each.answer
        took = "yes" if answer.took else "NO"
        pairs = [f"{before:.3f} → {after:.3f}" for before, after in (each.target, each.old)]
        rows.add_row(answer.prompt, answer.before, answer.after, took, *pairs)
        for paraphrase in each.paraphrases:
            took = "yes" if paraphrase.took else "no"
            rows.add_row(f"  {paraphrase.prompt}", paraphrase.before, paraphrase.after, took, "", "")
    for prompt, before, after in shown:
        rows.add_row(prompt, before, after, "", "", "")
    out.print(rows)
    out.print(f"{len(report.moved)} of {report.unrelated} unrelated answers changed.")
    for moved in report.moved[:5]:
        out.print(f"  {moved.prompt} {moved.before!r} → {moved.after!r}")
    if delta.metadata.instruction:
        out.print(delta.metadata.instruction, style="dim")
    about_requests = [text for each in report.requests for text in each.warnings]
    for warning in (*about_requests[:WARNINGS], *report.warnings):
        err.print(f"warning: {warning}")
    if len(about_requests) > WARNINGS:
        err.print(f"{len(about_requests) - WARNINGS} more warnings: --json has all of them")


def _refuse(with_what: str, options: Mapping[str, object]) -> None:
    """Options that would be ignored are refused."""
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise DataError(f"{', '.join(given)} cannot be given with {with_what}")


def _tasks_of(
    requests: list[EditRequest], task: str | None, template_file: Path | None, language_model: LanguageModel
) -> tuple[list[Task | None], list[str]]:
    """Each request's task, and notes on how it was found."""
    from instructedit.instructions.routing import SIMILARITY_THRESHOLD, Router
    from instructedit.instructions.template_files import load_task_with_templates
    from instructedit.tasks.loading import FREE_TEXT, NEUTRAL_TEXT, free_text_task, load_task

    if task is not None or template_file is not None:
        if task is None:
            raise DataError("--template-file needs the --task that it was made for")
        return [load_task_with_templates(task, template_file)] * len(requests), []
    unnamed = [request for request in requests if request.task is None and request.instruction is None]
    routes = iter(Router(language_model)(unnamed) if unnamed else [])
    tasks: list[Task | None] = []
    notes: list[str] = []
    for request in requests:
        if request.task is not None:
            tasks.append(load_task(request.task))
        elif request.instruction is not None:
            tasks.append(free_text_task())
        else:
            route = next(routes)
            tasks.append(route.task)
            if route.task.name == FREE_TEXT:
                notes.append(
                    f"{request.prompt!r} resembles no task's requests (similarities: {route}; all below "
                    f"{SIMILARITY_THRESHOLD}), so the neutral instruction is taken: {NEUTRAL_TEXT} --task or "
                    "--instruction says what you want"
                )
            else:
                notes.append(
                    f"task {route.task.name} chosen for {request.prompt!r} (similarities: {route}); "
                    "--task takes another"
                )
    return tasks, notes
