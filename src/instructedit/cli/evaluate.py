"""``instructedit evaluate``: measure an editor on a file of edits."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from instructedit.cli.console import emit_json, err, out, progress, quiet_libraries, table
from instructedit.cli.options import Device, DeviceMap, Dtype, EditorFile, JsonFile, Model, TemplateFile
from instructedit.errors import DataError
from instructedit.evaluation.protocols import Control, Protocol

if TYPE_CHECKING:
    from instructedit.evaluation.runner import Evaluation
    from instructedit.instructions.templates import Split


def evaluate_command(
    task: Annotated[str, typer.Option(help="Name of a task (see `instructedit tasks`), or its YAML file.")],
    data: Annotated[
        Path,
        typer.Option(
            help="The edits: a JSON or JSON Lines file in any known format; `bundled/…` is a file of the package."
        ),
    ],
    model: Model = "bundled",
    editor: EditorFile = "bundled",
    protocol: Annotated[
        Protocol,
        typer.Option(
            help="plain: no instruction before the queries, teacher forcing. generation: the same queries, free "
            "generation and exact match, with the metrics of generated text. paper: the instruction before the "
            "queries, teacher forcing."
        ),
    ] = Protocol.PLAIN,
    instruction: Annotated[
        Control,
        typer.Option(
            help="Instruction of the edits. Of the task itself: unseen (description held out from training) or seen. "
            "Swapped-instruction controls, with the opposite task: text-swapped, name-swapped, swapped-scope (both). "
            "Other controls: text-alone (neutral name), unrelated, other-task, none."
        ),
    ] = Control.UNSEEN,
    templates: Annotated[
        str | None,
        typer.Option(
            help="validation or test: hand-written held-out templates of the task's scope, under a neutral task name."
        ),
    ] = None,
    opposite: Annotated[
        str | None,
        typer.Option(help="The opposite task, for the swapped-instruction controls and for what must differ."),
    ] = None,
    template_file: TemplateFile = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Number of edits, drawn at random with --seed.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the drawn edits, instructions and intervals.")] = 0,
    text_metrics: Annotated[
        bool, typer.Option("--text-metrics", help="Also measure the metrics of the group `text`, which generate text.")
    ] = False,
    batch: Annotated[int, typer.Option(min=1, help="Edits at a time.")] = 32,
    records: Annotated[bool, typer.Option(help="Include the scores of every edit in the JSON.")] = False,
    skip_incomplete: Annotated[bool, typer.Option(help="Leave out records that lack a field.")] = False,
    dtype: Dtype = "float32",
    device: Device = None,
    device_map: DeviceMap = None,
    json_: JsonFile = None,
) -> None:
    """Measure an editor on a file of edits, each made by itself; `instructedit metrics` lists what is measured."""
    quiet_libraries()
    from instructedit.editors.lookup import find_editor
    from instructedit.evaluation.metrics import MetricGroup, registered_metrics
    from instructedit.evaluation.provenance import provenance
    from instructedit.evaluation.runner import evaluate
    from instructedit.instructions.template_files import load_task_with_templates
    from instructedit.models.allocator import keep_freed_memory
    from instructedit.models.language_model import load_language_model
    from instructedit.tasks.edits import read_edits

    keep_freed_memory()
    if templates not in (None, "validation", "test"):
        raise DataError(f"--templates takes validation or test, not {templates!r}")
    chosen_task = load_task_with_templates(task, template_file)
    edits = read_edits(chosen_task, data, skip_incomplete=skip_incomplete)
    if limit is not None and limit < len(edits):
        edits = random.Random(seed).sample(edits, limit)
    language_model = load_language_model(model, dtype=dtype, device=device, device_map=device_map)
    loaded_editor = find_editor(editor, language_model)
    groups = [MetricGroup.CORE, MetricGroup.EXTENDED]
    if text_metrics or protocol is Protocol.GENERATION:
        groups.append(MetricGroup.TEXT)
    with progress() as bar:
        job = bar.add_task(f"evaluating {chosen_task.name}", total=len(edits), note="")
        result = evaluate(
            loaded_editor,
            language_model,
            chosen_task,
            edits,
            metrics=registered_metrics(*groups),
            protocol=protocol,
            instruction=instruction,
            templates=cast("Split | None", templates),
            opposite=opposite,
            seed=seed,
            batch=batch,
            on_edits=lambda done: bar.update(job, completed=done),
        )
    content: dict[str, Any] = {
        "model": model,
        **provenance(editor, loaded_editor, language_model, data),
        "seed": seed,
        **result.as_dict(with_records=records),
    }
    if json_ is not None:
        emit_json(content, json_)
        if str(json_) == "-":
            return
        err.print(f"written to {json_}")
    _print_table(result, content["met"])


def _print_table(result: Evaluation, met: Mapping[str, str]) -> None:
    figures = table(
        "metric",
        "mean",
        "95% interval",
        "edits",
        title=f"{result.task}: protocol {result.protocol}, instruction {result.instruction}, {result.edits} edits",
    )
    for name, figure in result.metrics.items():
        figures.add_row(name, f"{figure.mean:.3f}", f"{figure.low:.3f} to {figure.high:.3f}", str(figure.count))
    out.print(figures)
    out.print(f"Base model: {met['base']}. Editor: {met['editor']}.")
    out.print("Intervals: percentile bootstrap over edits. `instructedit metrics` explains the metrics.")
