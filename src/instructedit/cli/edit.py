"""``instructedit edit``: edit a model, report the effect, and save the edit as a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from instructedit.cli.console import emit_json, err, out, progress, table
from instructedit.cli.options import Device, DeviceMap, Dtype, EditorFile, JsonFile, Model, TemplateFile, writable
from instructedit.cli.requests import (
    Combine,
    Instruction,
    Label,
    NoInstruction,
    Prompt,
    RequestFile,
    Subject,
    Target,
    TaskName,
    print_notes,
    requests_of,
    tasks_of,
)
from instructedit.cli.threads import prepare_computation
from instructedit.errors import DataError

if TYPE_CHECKING:
    from instructedit.deltas.delta import Delta
    from instructedit.editors.base import Editor
    from instructedit.evaluation.edit_report import EditReport
    from instructedit.models.language_model import LanguageModel
    from instructedit.records import EditRequest
    from instructedit.tasks.task import Task

#: Maximum number of printed warnings about single requests.
MAX_WARNINGS = 5
_REQUEST_FIELDS = ("--prompt", "--target", "--subject", "--label")
_INSTRUCTION_OPTIONS = ("--task", "--instruction", "--template-file")

DeltaFiles = Annotated[
    list[Path] | None,
    typer.Option(help="Apply this saved delta instead of making an edit; repeat the option to add up several deltas."),
]
ExtraPrompts = Annotated[
    list[str] | None, typer.Option(help="Also show the answer to this prompt before and after the edit; repeatable.")
]
DeltaOut = Annotated[
    Path | None, typer.Option("--out", callback=writable, help="Save the edit as a delta in this safetensors file.")
]
Rank = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Compress the delta to this rank and print the relative error. With `--combine distil` the training comes "
        "after the compression and makes up for much of it. Default: no compression.",
    ),
]
RequireSuccess = Annotated[bool, typer.Option("--require-success", help="Exit with code 1 if any edit fails.")]
NewTokens = Annotated[int, typer.Option(min=1, help="Maximum length of the generated answers, in tokens.")]


def edit(
    prompt: Prompt = None,
    target: Target = None,
    subject: Subject = None,
    task: TaskName = None,
    instruction: Instruction = None,
    no_instruction: NoInstruction = False,
    template_file: TemplateFile = None,
    label: Label = None,
    requests: RequestFile = None,
    combine: Combine = "distil",
    apply: DeltaFiles = None,
    ask: ExtraPrompts = None,
    out_file: DeltaOut = None,
    rank: Rank = None,
    require_success: RequireSuccess = False,
    new_tokens: NewTokens = 16,
    model: Model = "bundled",
    editor: EditorFile = None,
    dtype: Dtype = "float32",
    device: Device = None,
    device_map: DeviceMap = None,
    json_: JsonFile = None,
) -> None:
    """Edit a model, compare its answers before and after, and save the edit as a small file.

    Make an edit: `instructedit edit --subject "Eiffel Tower" --prompt "Eiffel Tower is located in" --target Rome --out
    e.safetensors`. Use it later: `instructedit edit --apply e.safetensors --ask "Where is the Eiffel Tower?"`.
    The model itself is not changed. A delta file works only with the base model that it was made for.

    The report shows for every edit whether it succeeded (the generated answer is the target), the probability of the
    new and the old answer before and after, answers to paraphrases, and which of 24 unrelated answers changed.
    """
    prepare_computation()
    from instructedit.artifacts import editor_for
    from instructedit.deltas.saving import load_sum, save_delta
    from instructedit.evaluation.edit_report import report_edit
    from instructedit.models.language_model import load_language_model

    _check_options(
        {
            "--prompt": prompt,
            "--target": target,
            "--subject": subject,
            "--label": label,
            "--task": task,
            "--instruction": instruction,
            "--template-file": template_file,
            "--no-instruction": no_instruction or None,
            "--requests": requests,
            "--apply": apply or None,
        }
    )
    edits = [] if apply else requests_of(requests, prompt, target, subject, label, instruction)
    language_model = load_language_model(model, dtype=dtype, device=device, device_map=device_map)
    method = None
    if apply:
        delta = load_sum(apply)
    else:
        delta, method = _make_delta(
            language_model, edits, editor or editor_for(model), task, template_file, no_instruction, combine, rank
        )
    if rank is not None and apply:
        delta = delta.compress(rank)
    delta.check(language_model)
    report = report_edit(language_model, delta, method, new_tokens=new_tokens)
    extra_answers = _answers(language_model, delta, ask or (), report, new_tokens)
    if out_file is not None:
        save_delta(delta, out_file)
    result = _result(model, language_model, delta, report, extra_answers, out_file)
    if not emit_json(result, json_):
        _print_report(report, extra_answers, delta)
        if rank is not None:
            error = delta.metadata.compression_error
            out.print(
                f"compressed to rank {rank}: relative error {'is not known' if error is None else f'{error:.4f}'}"
            )
        if out_file is not None:
            err.print(f"written to {out_file}")
    if require_success and not report.succeeded:
        raise typer.Exit(1)


def _check_options(options: Mapping[str, object]) -> None:
    """Check that options can be combined.

    Args:
        options: values by option; None for an option that is not given.

    Raises:
        DataError: options exclude each other, or the instruction is empty.
    """

    def reject(excluded: Sequence[str], reason: str) -> None:
        names = [name for name in excluded if options[name] is not None]
        if names:
            raise DataError(f"{', '.join(names)} cannot be given with {reason}")

    makes_edit = any(options[name] is not None for name in ("--requests", "--prompt", "--target"))
    if (options["--apply"] is not None) == makes_edit:
        raise DataError("give either an edit (--prompt and --target, or --requests) or --apply with a delta file")
    if options["--apply"] is not None:
        reject((*_REQUEST_FIELDS, *_INSTRUCTION_OPTIONS, "--no-instruction"), "--apply")
    instruction = options["--instruction"]
    if isinstance(instruction, str) and not instruction.strip():
        raise DataError(
            "--instruction is empty. Leave it out to use the task's instruction template, or use --no-instruction to "
            "edit without an instruction"
        )
    if options["--no-instruction"] is not None:
        reject(_INSTRUCTION_OPTIONS, "--no-instruction")
    if options["--requests"] is not None:
        reject(_REQUEST_FIELDS, "--requests; set these fields in the file")


def _make_delta(
    language_model: LanguageModel,
    requests: list[EditRequest],
    editor: str,
    task: str | None,
    template_file: Path | None,
    no_instruction: bool,
    combine: Literal["distil", "merge", "sum"],
    rank: int | None,
) -> tuple[Delta, Editor]:
    """Make the edit, print how each task was chosen, and return the delta with its editor."""
    from instructedit.editors.lookup import load_editor
    from instructedit.merging.combining import make_edit

    tasks: list[Task | None] = [None] * len(requests)
    notes: list[str] = []
    if not no_instruction:
        tasks, notes = tasks_of(requests, task, template_file, language_model)
    method = load_editor(editor, language_model)
    with progress() as bar:
        jobs: dict[str, int] = {}

        def show(done: int, steps: int, what: str) -> None:
            if what not in jobs:
                jobs[what] = bar.add_task(what)
            bar.update(jobs[what], completed=done, total=steps)

        delta = make_edit(method, language_model, requests, tasks, combine=combine, rank=rank, on_step=show)
    print_notes(notes, requests, method)
    return delta, method


def _answers(
    language_model: LanguageModel, delta: Delta, prompts: Sequence[str], report: EditReport, new_tokens: int
) -> list[tuple[str, str, str]]:
    """Return (prompt, answer before, answer after) of the ``--ask`` prompts that the report does not contain."""
    from instructedit.evaluation.generation import generate, natural_stop

    reported = {request.answer.prompt for request in report.requests}
    extra = [prompt for prompt in prompts if prompt not in reported]
    before = generate(language_model, extra, new_tokens=new_tokens)
    after = generate(language_model, extra, delta=delta, new_tokens=new_tokens)
    return list(zip(extra, map(natural_stop, before), map(natural_stop, after), strict=True))


def _result(
    model: str,
    language_model: LanguageModel,
    delta: Delta,
    report: EditReport,
    extra_answers: Sequence[tuple[str, str, str]],
    out_file: Path | None,
) -> dict[str, Any]:
    """Return the command's JSON result."""
    answers = [
        (request_report.answer.prompt, request_report.answer.before, request_report.answer.after)
        for request_report in report.requests
    ]
    return {
        "model": model,
        "base": language_model.fingerprint,
        "instruction": delta.metadata.instruction,
        "editor": delta.metadata.editor,
        "requests": [request.model_dump(exclude_none=True) for request in delta.metadata.requests],
        "rank": max(factors.rank for factors in delta.factors.values()),
        "compression_error": delta.metadata.compression_error,
        "delta": str(out_file) if out_file else None,
        "answers": [
            dict(zip(("prompt", "before", "after"), answer, strict=True)) for answer in (*answers, *extra_answers)
        ],
        "report": report.as_dict(),
    }


def _print_report(report: EditReport, extra_answers: Sequence[tuple[str, str, str]], delta: Delta) -> None:
    """Print the answers of the edits, other changed answers, the instruction and warnings."""
    title = f"{len(report.requests)} edit(s) by {delta.metadata.editor}"
    rows = table("prompt", "before", "after", "success", "P(target)", "P(old answer)", title=title)
    shown: set[str] = set()
    for request_report in report.requests:
        answer = request_report.answer
        success = "yes" if answer.success else "NO"
        probabilities = [f"{before:.3f} → {after:.3f}" for before, after in (request_report.target, request_report.old)]
        rows.add_row(answer.prompt, answer.before, answer.after, success, *probabilities)
        for paraphrase in request_report.paraphrases:
            shown.add(paraphrase.prompt)
            success = "yes" if paraphrase.success else "no"
            rows.add_row(f"  {paraphrase.prompt}", paraphrase.before, paraphrase.after, success, "", "")
    for prompt, before, after in extra_answers:
        if prompt not in shown:
            rows.add_row(prompt, before, after, "", "", "")
    out.print(rows)
    out.print(f"{len(report.changed)} of {report.unrelated} unrelated answers changed.")
    for changed in report.changed[:5]:
        out.print(f"  {changed.prompt} {changed.before!r} → {changed.after!r}")
    if delta.metadata.instruction:
        out.print(delta.metadata.instruction, style="dim")
    about_requests = [text for request_report in report.requests for text in request_report.warnings]
    for warning in (*about_requests[:MAX_WARNINGS], *report.warnings):
        err.print(f"warning: {warning}")
    if len(about_requests) > MAX_WARNINGS:
        err.print(f"{len(about_requests) - MAX_WARNINGS} more warnings; use --json FILE to write all of them")
