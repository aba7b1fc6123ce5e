"""``instructedit evaluate``: measure an editor on a file of edits."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from instructedit.cli.console import emit_json, err, out, progress, quiet_libraries, table
from instructedit.cli.options import Device, DeviceMap, Dtype, EditorFile, JsonFile, Model, TemplateFile
from instructedit.errors import DataError
from instructedit.evaluation.protocols import Control, Protocol

if TYPE_CHECKING:
    from instructedit.instructions.templates import Split


def evaluate_command(
    task: Annotated[str, typer.Option(help="A task's name (see `instructedit tasks`) or its YAML file.")],
    data: Annotated[
        Path, typer.Option(help="The edits: a JSON or JSON Lines file in any known schema; `bundled/…` ships.")
    ],
    model: Model = "bundled",
    editor: EditorFile = "bundled",
    protocol: Annotated[
        Protocol,
        typer.Option(
            help="plain: queries as users write them. generation: the same, decoded freely and compared whole, with "
            "fluency. paper: the instruction before the queries."
        ),
    ] = Protocol.PLAIN,
    instruction: Annotated[
        Control,
        typer.Option(
            help="Which instruction edits get. Own name and text: unseen (tenth description, in no training), seen. "
            "Of the opposite scope: text-swapped, name-swapped, swapped-scope (both). Controls: text-alone (behind a "
            "neutral name), unrelated (a text about something else), other-task, none."
        ),
    ] = Control.UNSEEN,
    templates: Annotated[
        str | None,
        typer.Option(help="validation or test: held-out templates of the task's scope, behind a neutral task name."),
    ] = None,
    opposite: Annotated[
        str | None,
        typer.Option(help="The task that --instruction swapped-scope swaps with, and `following` is against."),
    ] = None,
    template_file: TemplateFile = None,
    limit: Annotated[int | None, typer.Option(min=1, help="That many edits, drawn at random with --seed.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the drawn edits, instructions and intervals.")] = 0,
    fluency: Annotated[bool, typer.Option(help="Also generate texts and measure their n-gram entropy.")] = False,
    batch: Annotated[int, typer.Option(min=1, help="Edits at a time.")] = 32,
    records: Annotated[bool, typer.Option(help="Keep every edit's own scores in the JSON.")] = False,
    skip_incomplete: Annotated[bool, typer.Option(help="Leave out records that lack a field.")] = False,
    dtype: Dtype = "float32",
    device: Device = None,
    device_map: DeviceMap = None,
    json_: JsonFile = None,
) -> None:
    """Measure an editor on a file of edits: every edit by itself, with all its probes, before and after.

    Protocols: `plain` (queries as users write them, teacher-forced token accuracy), `generation` (the same, greedy
    decoding and exact match) and `paper` (the instruction before edit, rephrase and portability prompts).
    """
    quiet_libraries()
    from instructedit.editors.saving import find_editor
    from instructedit.evaluation.provenance import provenance
    from instructedit.evaluation.runner import evaluate
    from instructedit.instructions.template_files import load_task_with_templates
    from instructedit.models.allocator import keep_freed_memory
    from instructedit.models.language_model import load_language_model
    from instructedit.tasks.edits import read_edits

    keep_freed_memory()
    if templates not in (None, "validation", "test"):
        raise DataError(f"--templates takes validation or test, not {templates!r}")
    found_task = load_task_with_templates(task, template_file)
    edits = read_edits(found_task, data, skip_incomplete=skip_incomplete)
    if limit is not None and limit < len(edits):
        edits = random.Random(seed).sample(edits, limit)
    language_model = load_language_model(model, dtype=dtype, device=device, device_map=device_map)
    trained = find_editor(editor, language_model)
    with progress() as bar:
        job = bar.add_task(f"evaluating {found_task.name}", total=len(edits), note="")
        result = evaluate(
            trained,
            language_model,
            found_task,
            edits,
            protocol=protocol,
            instruction=instruction,
            templates=cast("Split | None", templates),
            opposite=opposite,
            fluency=fluency or protocol is Protocol.GENERATION,
            seed=seed,
            batch=batch,
            on_edits=lambda done: bar.update(job, completed=done),
        )
    value: dict[str, Any] = {
        "model": model,
        **provenance(editor, trained, language_model, data),
        "seed": seed,
        **result.as_dict(with_records=records),
    }
    if json_ is not None:
        emit_json(value, json_)
        if str(json_) == "-":
            return
        err.print(f"written to {json_}")
    rows = table(
        "metric",
        "mean",
        "95% interval",
        "edits",
        title=f"{found_task.name}: protocol {protocol}, instruction {result.instruction}, {result.edits} edits",
    )
    for name, figure in result.metrics.items():
        rows.add_row(name, f"{figure.mean:.3f}", f"{figure.low:.3f} to {figure.high:.3f}", str(figure.count))
    out.print(rows)
    out.print(f"Base model: {value['met']['base']}. Editor: {value['met']['editor']}.")
    out.print("Intervals: percentile bootstrap over edits. Metrics are explained in docs/metrics.md.")
