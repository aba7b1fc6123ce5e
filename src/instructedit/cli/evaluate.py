"""``instructedit evaluate``: evaluate an editor on a file of edits."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instructedit.cli.console import emit_json, err, out, progress, table
from instructedit.cli.endpoints import OPENAI, BaseUrl, KeyVariable, make_endpoint
from instructedit.cli.options import Device, DeviceMap, Dtype, EditorFile, JsonFile, Model, TemplateFile
from instructedit.cli.threads import prepare_computation
from instructedit.endpoints.chat import USUAL_VARIABLE
from instructedit.errors import DataError
from instructedit.evaluation.protocols import Control, Protocol

if TYPE_CHECKING:
    from instructedit.evaluation.runner import Evaluation


def evaluate_command(
    task: Annotated[
        str, typer.Option(help="Task of the edits: a name from `instructedit tasks`, or a task's YAML file.")
    ],
    data: Annotated[
        Path,
        typer.Option(
            help="File of edits, JSON or JSON Lines, in a format that `instructedit tasks` lists. `bundled/NAME.jsonl` "
            "is a file of the package."
        ),
    ],
    model: Model = "bundled",
    editor: EditorFile = None,
    protocol: Annotated[
        Protocol,
        typer.Option(
            help="`plain`: queries without an instruction, teacher forcing. `generation`: queries without an "
            "instruction, free generation and exact match; adds the metrics of the group `text`. `paper`: queries "
            "after the instruction, teacher forcing. `answer`: as `generation`, but the text need only begin with the "
            "answer. `chat`: queries as a user's messages in the model's chat template, teacher forcing."
        ),
    ] = Protocol.PLAIN,
    instruction: Annotated[
        Control,
        typer.Option(
            help="Instruction control. The task's own instruction: `unseen` (held-out template) or `seen` (training "
            "template). Parts of the opposite task's instruction: `text-swapped`, `name-swapped`, `swapped-scope` "
            "(both). Others: `text-alone` (neutral task name), `unrelated` (unrelated text), `other-task`, `none`."
        ),
    ] = Control.UNSEEN,
    templates: Annotated[
        str | None,
        typer.Option(
            help="Use the hand-written held-out templates of the task's scope, with a neutral task name: `validation`, "
            "`test`, or for `this-fact` and `rename` one of `negated`, `short`, `foreign`, `misspelt`."
        ),
    ] = None,
    opposite: Annotated[
        str | None,
        typer.Option(
            help="Opposite task for the swapped instructions and for the metric `following`. Default: the task's "
            "`opposite` field."
        ),
    ] = None,
    template_file: TemplateFile = None,
    judge_model: Annotated[
        str | None,
        typer.Option(
            help="With `generation` or `answer`: let this model at an OpenAI-compatible endpoint say whether two "
            "answers are the same, in place of comparing their words. Its verdicts are kept in the cache folder."
        ),
    ] = None,
    base_url: BaseUrl = OPENAI,
    key_variable: KeyVariable = USUAL_VARIABLE,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Use this many edits, drawn at random. Default: all.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed for the edits, instructions and intervals.")] = 0,
    text_metrics: Annotated[
        bool,
        typer.Option("--text-metrics", help="Also compute the metrics of the group `text`, which need generated text."),
    ] = False,
    batch: Annotated[int, typer.Option(min=1, help="Batch size in edits.")] = 32,
    records: Annotated[bool, typer.Option(help="Include the scores of every edit in the JSON result.")] = False,
    skip_incomplete: Annotated[bool, typer.Option(help="Skip records that lack a field, instead of failing.")] = False,
    dtype: Dtype = "float32",
    device: Device = None,
    device_map: DeviceMap = None,
    json_: JsonFile = None,
) -> None:
    """Evaluate an editor on a file of edits, each applied separately to the unedited base model.

    Run `instructedit metrics` for a list of the metrics.
    """
    prepare_computation()
    from instructedit.artifacts import editor_for
    from instructedit.editors.lookup import load_editor
    from instructedit.evaluation.judge import Judge
    from instructedit.evaluation.metrics import MetricGroup, registered_metrics
    from instructedit.evaluation.provenance import provenance
    from instructedit.evaluation.runner import evaluate
    from instructedit.instructions.template_files import load_task_with_templates
    from instructedit.instructions.templates import SPLITS
    from instructedit.models.allocator import keep_freed_memory
    from instructedit.models.language_model import load_language_model
    from instructedit.tasks.edits import read_edits

    keep_freed_memory()
    if templates is not None and templates not in SPLITS:
        raise DataError(f"--templates must be one of {', '.join(SPLITS)}, not {templates!r}")
    chosen_task = load_task_with_templates(task, template_file)
    edits = read_edits(chosen_task, data, skip_incomplete=skip_incomplete)
    if limit is not None and limit < len(edits):
        edits = random.Random(seed).sample(edits, limit)
    judge = None if judge_model is None else Judge(make_endpoint(judge_model, base_url, key_variable))
    language_model = load_language_model(model, dtype=dtype, device=device, device_map=device_map)
    editor = editor or editor_for(model)
    loaded_editor = load_editor(editor, language_model)
    groups = [MetricGroup.CORE, MetricGroup.EXTENDED]
    if text_metrics or protocol.generates:
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
            templates=templates,
            opposite=opposite,
            judge=judge,
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
    if emit_json(content, json_):
        return
    if json_ is not None:
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
    out.print("Intervals: percentile bootstrap over edits. `instructedit metrics` defines the metrics.")
