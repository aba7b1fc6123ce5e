"""``instructedit instructions``: write, score and improve the instruction templates of a task."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instructedit.cli.console import emit_json, err, out, progress, quiet_libraries, styled, table
from instructedit.cli.options import Device, Dtype, EditorFile, JsonFile, Model, TemplateFile, writable
from instructedit.cli.proposer import (
    OPENAI,
    BaseUrl,
    KeyVariable,
    LanguageModelName,
    ProposerName,
    make_proposer,
    public_address,
)
from instructedit.errors import DataError

if TYPE_CHECKING:
    from instructedit.instructions.proposals import RankedTemplate
    from instructedit.instructions.search import SearchResult
    from instructedit.instructions.trial import Trial
    from instructedit.models.language_model import LanguageModel
    from instructedit.tasks.task import Task

app = typer.Typer(
    help="Write, score and improve the instruction templates of a task.\n\n"
    "`show` prints templates, `generate` writes candidates, `score` evaluates templates on validation edits, and "
    "`optimize` searches: propose, score, propose again from the scores. Test edits are never used.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

TaskName = Annotated[str, typer.Option("--task", help="A task's name or its YAML file.")]
Data = Annotated[Path | None, typer.Option(help="Validation edits; default: what the editor's training held out.")]
Seed = Annotated[int, typer.Option(help="Seed of the drawn edits and the offline proposals.")]


def _make_trial(
    task: Task, language_model: LanguageModel, editor: str, edits: int, seed: int, data: Path | None
) -> tuple[Trial, str]:
    """Return the trial of an editor on validation edits, and a description of where these come from."""
    from instructedit.data.pool import RecordPool
    from instructedit.editors.lookup import find_editor
    from instructedit.instructions.trial import Trial
    from instructedit.instructions.validation_edits import validation_edits

    records, source = validation_edits(task, editor, edits, seed, data)
    if task.is_wider:  # every template has to be scored on the same probes, whatever else is scored with it
        pool = RecordPool(records)
        records = [pool.completed(record, 2, seed) for record in records]
    return Trial(find_editor(editor, language_model), language_model, task, records, seed), source


def seconds_of(budget: str) -> float:
    """Return ``90s``, ``20m``, ``2h`` or plain minutes in seconds.

    Raises:
        DataError: it is none of them.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", budget.strip())
    if match is None:
        raise DataError(f"--budget takes a time such as 90s, 20m or 2h, not {budget!r}")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "": 60}[match[2]]


@app.command()
def show(task: TaskName, template_file: TemplateFile = None, json_: JsonFile = None) -> None:
    """Print the instruction templates of a task or a template file; the last ones are held out from training."""
    from instructedit.instructions.template_files import load_task_with_templates
    from instructedit.storage.reading import read_yaml_file

    with_templates = load_task_with_templates(task, template_file)
    raw = read_yaml_file(template_file) if template_file is not None else {}
    instructions = with_templates.instructions
    if json_ is not None:
        emit_json({**instructions.model_dump(mode="json"), "provenance": raw.get("provenance", {})}, json_)
        return
    out.print(styled((with_templates.name, "bold"), f": {with_templates.summary}"))
    origins = _origins(raw)
    for number, text in enumerate(instructions.all_templates, start=1):
        out.print(f"{number:>3}. {text}{origins.get(text, '')}")


def _origins(raw: Any) -> dict[str, str]:
    """Return who proposed each text of a template file; a provenance that people wrote themselves is left out."""
    provenance = raw.get("provenance") if isinstance(raw, dict) else None
    texts = provenance.get("texts") if isinstance(provenance, dict) else None
    return {
        entry["text"]: f"  ({entry.get('proposer', '?')}, round {entry.get('round', '?')})"
        for entry in (texts if isinstance(texts, list) else ())
        if isinstance(entry, dict) and isinstance(entry.get("text"), str)
    }


@app.command()
def generate(
    task: TaskName,
    proposer: ProposerName = "offline",
    count: Annotated[int, typer.Option(min=1, help="How many.")] = 10,
    out_file: Annotated[
        Path | None, typer.Option("--out", callback=writable, help="Write them as a template file (YAML).")
    ] = None,
    base_url: BaseUrl = OPENAI,
    proposer_model: LanguageModelName = None,
    key_variable: KeyVariable = "OPENAI_API_KEY",
    seed: Seed = 0,
) -> None:
    """Write candidates without scoring them. Texts that cannot be a template are left out, with the reason."""
    from instructedit.instructions.candidates import Candidate, validation_error
    from instructedit.instructions.proposals import ProposalContext, RankedTemplate
    from instructedit.instructions.template_files import write_templates
    from instructedit.tasks.loading import load_task

    loaded = load_task(task)
    writer = make_proposer(proposer, seed, base_url, proposer_model, key_variable, exploration_rate=0.0)
    candidates: list[Candidate] = []
    known = tuple(RankedTemplate(text, {}, 0.0) for text in loaded.instructions.all_templates)
    for text, parent in writer.propose(ProposalContext(loaded, (), known, count, 1), lambda call: None):
        reason = validation_error(text, loaded)
        if reason is None and text in {*loaded.instructions.all_templates, *(each.text for each in candidates)}:
            reason = "was there before"
        if reason is None:
            candidates.append(Candidate(text, writer.name, parent, 1))
            out.print(text)
        else:
            err.print(f"left out, it {reason}: {text!r}")
    if out_file is not None:
        if len(candidates) < 2:
            raise DataError(
                f"a template file needs a training and a held-out template; {len(candidates)} usable texts came out"
            )
        write_templates(out_file, loaded, candidates, {"proposer": writer.name, "seed": seed}, {})
        err.print(f"written to {out_file}")


@app.command()
def score(
    task: TaskName,
    template_file: TemplateFile = None,
    data: Data = None,
    edits: Annotated[int, typer.Option(min=1, help="Validation edits.")] = 60,
    model: Model = "bundled",
    editor: EditorFile = "bundled",
    dtype: Dtype = "float32",
    device: Device = None,
    seed: Seed = 0,
    json_: JsonFile = None,
) -> None:
    """Score every instruction template on validation edits, all in one batched evaluation."""
    quiet_libraries()
    from instructedit.evaluation.intervals import estimate
    from instructedit.instructions.template_files import load_task_with_templates
    from instructedit.instructions.trial import edit_means, metric_means, overall_score
    from instructedit.models.language_model import load_language_model

    loaded = load_task_with_templates(task, template_file)
    language_model = load_language_model(model, dtype=dtype, device=device)
    trial, source = _make_trial(loaded, language_model, editor, edits, seed, data)
    count = len(trial.records)
    texts = loaded.instructions.all_templates
    with progress() as bar:
        job = bar.add_task("scoring", total=len(texts) * count, note="")
        values = trial.values(texts, 0, count, lambda done: bar.update(job, completed=done))
    rows: list[dict[str, Any]] = [
        {
            "text": text,
            "score": overall_score(each),
            "metrics": metric_means(each),
            "mean": estimate(edit_means(each)).as_dict(),
        }
        for text, each in zip(texts, values, strict=True)
    ]
    rows.sort(key=lambda row: -float(row["score"]))
    if json_ is not None:
        emit_json({"task": loaded.name, "edits": count, "of": source, "rows": rows}, json_)
        if str(json_) == "-":
            return
    names = list(metric_means(values[0]))
    shown = table("instruction", "score", *names, title=f"{loaded.name}: {count} edits, {source}")
    for row in rows:
        shown.add_row(row["text"], f"{row['score']:.3f}", *(f"{row['metrics'][name]:.3f}" for name in names))
    out.print(shown)


@app.command()
def optimize(
    task: TaskName,
    out_file: Annotated[
        Path,
        typer.Option(
            "--out", callback=writable, help="The template file (YAML); the trace goes beside it (.trace.jsonl)."
        ),
    ],
    proposer: ProposerName = "offline",
    budget: Annotated[str, typer.Option(help="Time for all runs together: 90s, 20m, 2h.")] = "20m",
    rounds: Annotated[
        int, typer.Option(min=1, help="At most this many rounds of proposals (calls of an endpoint).")
    ] = 100,
    candidates: Annotated[int, typer.Option(min=1, help="Candidates in each round.")] = 24,
    patience: Annotated[int, typer.Option(min=1, help="Rounds without a better metric before it ends.")] = 3,
    template_file: TemplateFile = None,
    data: Data = None,
    edits: Annotated[int, typer.Option(min=3, help="Validation edits; a third of them only compares at the end.")] = 96,
    base_url: BaseUrl = OPENAI,
    proposer_model: LanguageModelName = None,
    key_variable: KeyVariable = "OPENAI_API_KEY",
    model: Model = "bundled",
    editor: EditorFile = "bundled",
    dtype: Dtype = "float32",
    device: Device = None,
    seed: Seed = 0,
    json_: JsonFile = None,
) -> None:
    """Search for better instruction templates: propose, score, and propose again from the scores.

    Candidates are scored with the editor as it is, on edits that it was not trained on: all on a few, the better half
    on twice as many, and so on. At the end the ten best are compared with the task's own ten on edits that chose
    nothing; only a gain whose interval is above zero makes new templates. A search that was stopped resumes from its
    trace and scores nothing twice.
    """
    quiet_libraries()
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
    trial, source = _make_trial(loaded, language_model, editor, edits, seed, data)
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
        job = bar.add_task("rounds", total=rounds, note="the task's own templates")

        def show_round(number: int, best: RankedTemplate) -> None:
            bar.update(job, completed=number, note=f"best {best.score:.3f}: {best.text[:60]}")

        result = optimise(loaded, trial, writer, trace, limit, show_round)
    provenance = _provenance(settings, len(trial.records), result)
    write_templates(out_file, loaded, result.templates, provenance, result.scores)
    if json_ is not None:
        emit_json({**provenance, "templates": str(out_file), "trace": str(trace.path)}, json_)
        if str(json_) == "-":
            return
    _print_result(result, f"{loaded.name}: edits that chose nothing ({source})")
    err.print(f"templates: {out_file}\ntrace: {trace.path}")


def _searched(task: Task, language_model: LanguageModel, editor: str, trial: Trial, source: str) -> dict[str, Any]:
    """Return what a search starts from: with other values, a trace is not resumed."""
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
    """Return what a template file records of its search."""
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
    rows = table("instructions", *result.metrics["start"], title=title)
    for who, row in result.metrics.items():
        label = "the ten best" if who == "new" else "the task's own"
        rows.add_row(label, *(f"{value:.3f}" for value in row.values()))
    out.print(rows)
    gain = result.gain
    verdict = "better" if result.improved else "no gain, the file has the task's own templates"
    out.print(f"difference {100 * gain.mean:+.2f} points ({100 * gain.low:+.2f} to {100 * gain.high:+.2f}): {verdict}")
    out.print(f"{result.tried} templates scored in {result.rounds} rounds; ended because {result.stopped}")
