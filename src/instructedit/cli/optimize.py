"""``instructedit instructions optimize``: search for better instruction templates."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instructedit.cli.console import emit_json, err, out, progress, table
from instructedit.cli.endpoints import OPENAI, BaseUrl, KeyVariable, public_address
from instructedit.cli.options import Device, Dtype, EditorFile, JsonFile, Model, TemplateFile, writable
from instructedit.cli.proposer import LanguageModelName, ProposerName, make_proposer
from instructedit.cli.threads import prepare_computation
from instructedit.cli.trial import Seed, TaskName, ValidationFile, make_trial
from instructedit.endpoints.chat import USUAL_VARIABLE
from instructedit.errors import DataError

if TYPE_CHECKING:
    from instructedit.instructions.proposals import RankedTemplate
    from instructedit.instructions.search import SearchResult
    from instructedit.instructions.trial import Trial
    from instructedit.models.language_model import LanguageModel
    from instructedit.tasks.task import Task


def optimize(
    task: TaskName,
    out_file: Annotated[
        Path,
        typer.Option(
            "--out",
            callback=writable,
            help="Output file for the templates (YAML). The search trace is written to the same folder (.trace.jsonl).",
        ),
    ],
    proposer: ProposerName = "offline",
    budget: Annotated[str, typer.Option(help="Time limit of the search, over all its runs: 90s, 20m, 2h.")] = "20m",
    rounds: Annotated[
        int, typer.Option(min=1, help="Maximum number of rounds; the endpoint proposer makes one request per round.")
    ] = 100,
    candidates: Annotated[int, typer.Option(min=1, help="Number of candidates per round.")] = 24,
    patience: Annotated[int, typer.Option(min=1, help="Stop after this many rounds in which no metric improved.")] = 3,
    template_file: TemplateFile = None,
    data: ValidationFile = None,
    edits: Annotated[
        int, typer.Option(min=3, help="Number of validation edits; a third is reserved for the final comparison.")
    ] = 96,
    base_url: BaseUrl = OPENAI,
    proposer_model: LanguageModelName = None,
    key_variable: KeyVariable = USUAL_VARIABLE,
    model: Model = "bundled",
    editor: EditorFile = None,
    dtype: Dtype = "float32",
    device: Device = None,
    seed: Seed = 0,
    json_: JsonFile = None,
) -> None:
    """Search for better instruction templates: propose, score, and propose again from the scores.

    Candidates are selected by successive halving, with the trained editor unchanged, on edits that it was not trained
    on. Finally the ten best are compared with the current templates on the reserved edits. If the 95% interval of the
    gain is not above zero, the output file contains the current templates. An interrupted search resumes from its
    trace.
    """
    prepare_computation()
    from instructedit.artifacts import editor_for
    from instructedit.instructions.search import Budget, optimise
    from instructedit.instructions.search_trace import SearchTrace
    from instructedit.instructions.template_files import load_task_with_templates, write_templates
    from instructedit.models.language_model import load_language_model
    from instructedit.storage.writing import check_writable

    limit = Budget(seconds_of(budget), rounds, patience, candidates)
    loaded = load_task_with_templates(task, template_file)
    writer = make_proposer(proposer, seed, base_url, proposer_model, key_variable)
    trace_file = out_file.with_name(f"{out_file.stem}.trace.jsonl")
    check_writable(trace_file)
    language_model = load_language_model(model, dtype=dtype, device=device)
    editor = editor or editor_for(model)
    trial, source = make_trial(loaded, language_model, editor, edits, seed, data)
    settings = {
        **_searched(loaded, language_model, editor, trial, source),
        "proposer": writer.name,
        "proposer_model": proposer_model,
        "base_url": public_address(base_url) if proposer_model else None,
        "seed": seed,
        "candidates": candidates,
    }
    trace = SearchTrace(trace_file, settings)
    with progress() as bar:
        job = bar.add_task("rounds", total=rounds, note="current templates")

        def show_round(number: int, best: RankedTemplate) -> None:
            bar.update(job, completed=number, note=f"best {best.score:.3f}: {best.text[:60]}")

        result = optimise(loaded, trial, writer, trace, limit, show_round)
    provenance = _provenance(settings, len(trial.records), result)
    write_templates(out_file, loaded, result.templates, provenance, result.scores)
    if emit_json({**provenance, "templates": str(out_file), "trace": str(trace.path)}, json_):
        return
    _print_result(result, f"{loaded.name}: final comparison on reserved validation edits ({source})")
    err.print(f"templates: {out_file}\ntrace: {trace.path}")


def seconds_of(budget: str) -> float:
    """Return a time such as ``90s``, ``20m``, ``2h`` or ``20`` (minutes) in seconds.

    Raises:
        DataError: it is not a time.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", budget.strip())
    if match is None:
        raise DataError(f"--budget must be a time such as 90s, 20m or 2h, not {budget!r}")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "": 60}[match[2]]


def _searched(task: Task, language_model: LanguageModel, editor: str, trial: Trial, source: str) -> dict[str, Any]:
    """Return the start settings of a search; a trace with other settings is not resumed."""
    from instructedit.editors.saving import digest_of

    return {
        "task": task.name,
        "start": list(task.instructions.all_templates),
        "base": language_model.fingerprint,
        "editor": editor,
        "editor_digest": digest_of(editor),
        "edits": [record.record_id for record in trial.records],
        "of": source,
    }


def _provenance(settings: Mapping[str, Any], edits: int, result: SearchResult) -> dict[str, Any]:
    """Return the provenance that a template file records."""
    kept = ("base", "editor", "editor_digest", "proposer", "proposer_model", "seed", "of")
    return {
        **{key: settings[key] for key in kept},
        "edits": edits,
        "improved": result.improved,
        "gain": result.gain.as_dict(),
        "metrics": {who: {k: round(v, 5) for k, v in row.items()} for who, row in result.metrics.items()},
        "stopped": result.stopped,
        "rounds": result.rounds,
        "tried": result.tried,
    }


def _print_result(result: SearchResult, title: str) -> None:
    rows = table("templates", *result.metrics["start"], title=title)
    for who, row in result.metrics.items():
        label = "best candidates" if who == "new" else "current"
        rows.add_row(label, *(f"{value:.3f}" for value in row.values()))
    out.print(rows)
    gain = result.gain
    verdict = "improved" if result.improved else "no significant gain, the file contains the current templates"
    out.print(f"difference {100 * gain.mean:+.2f} points ({100 * gain.low:+.2f} to {100 * gain.high:+.2f}): {verdict}")
    out.print(f"{result.tried} templates scored in {result.rounds} rounds; stopped: {result.stopped}")
