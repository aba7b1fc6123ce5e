"""``instructedit instructions``: show, generate, score and optimise the instruction templates of a task."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from instructedit.cli.console import emit_json, err, out, progress, styled, table
from instructedit.cli.endpoints import OPENAI, BaseUrl, KeyVariable
from instructedit.cli.optimize import optimize
from instructedit.cli.options import Device, Dtype, EditorFile, JsonFile, Model, TemplateFile, writable
from instructedit.cli.proposer import LanguageModelName, ProposerName, make_proposer
from instructedit.cli.threads import prepare_computation
from instructedit.cli.trial import Seed, TaskName, ValidationFile, make_trial
from instructedit.endpoints.chat import USUAL_VARIABLE
from instructedit.errors import DataError

app = typer.Typer(
    help="Show, generate, score and optimize the instruction templates of a task.\n\n"
    "Use `score` to evaluate templates on validation edits, and `optimize` to search for better ones. Test edits are "
    "never used.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


@app.command()
def show(task: TaskName, template_file: TemplateFile = None, json_: JsonFile = None) -> None:
    """Print the instruction templates of a task or a template file; held-out templates are listed last."""
    from instructedit.instructions.template_files import load_task_with_templates
    from instructedit.storage.reading import read_yaml_file

    with_templates = load_task_with_templates(task, template_file)
    raw = read_yaml_file(template_file) if template_file is not None else {}
    instructions = with_templates.instructions
    if emit_json({**instructions.model_dump(mode="json"), "provenance": raw.get("provenance", {})}, json_):
        return
    out.print(styled((with_templates.name, "bold"), f": {with_templates.summary}"))
    origins = _origins(raw)
    for number, text in enumerate(instructions.all_templates, start=1):
        out.print(f"{number:>3}. {text}{origins.get(text, '')}")


def _origins(raw: Any) -> dict[str, str]:
    """Return the proposer of each text of a template file; entries in another format are ignored."""
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
    count: Annotated[int, typer.Option(min=1, help="Number of candidates.")] = 10,
    out_file: Annotated[
        Path | None, typer.Option("--out", callback=writable, help="Write the candidates to this template file (YAML).")
    ] = None,
    base_url: BaseUrl = OPENAI,
    proposer_model: LanguageModelName = None,
    key_variable: KeyVariable = USUAL_VARIABLE,
    seed: Seed = 0,
) -> None:
    """Propose candidate templates without scoring them. Invalid texts are rejected with the reason."""
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
            reason = "is a duplicate"
        if reason is None:
            candidates.append(Candidate(text, writer.name, parent, 1))
            out.print(text)
        else:
            err.print(f"rejected: {text!r} {reason}")
    if out_file is not None:
        if len(candidates) < 2:
            raise DataError(
                f"a template file needs at least two templates, but only {len(candidates)} candidate(s) are valid; "
                "increase --count"
            )
        write_templates(out_file, loaded, candidates, {"proposer": writer.name, "seed": seed}, {})
        err.print(f"written to {out_file}")


@app.command()
def score(
    task: TaskName,
    template_file: TemplateFile = None,
    data: ValidationFile = None,
    edits: Annotated[int, typer.Option(min=1, help="Number of validation edits.")] = 60,
    model: Model = "bundled",
    editor: EditorFile = None,
    dtype: Dtype = "float32",
    device: Device = None,
    seed: Seed = 0,
    json_: JsonFile = None,
) -> None:
    """Score the instruction templates of a task or a template file on validation edits."""
    prepare_computation()
    from instructedit.artifacts import editor_for
    from instructedit.evaluation.intervals import estimate
    from instructedit.instructions.template_files import load_task_with_templates
    from instructedit.instructions.trial import edit_means, metric_means, overall_score
    from instructedit.models.language_model import load_language_model

    loaded = load_task_with_templates(task, template_file)
    language_model = load_language_model(model, dtype=dtype, device=device)
    trial, source = make_trial(loaded, language_model, editor or editor_for(model), edits, seed, data)
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
    if emit_json({"task": loaded.name, "edits": count, "of": source, "rows": rows}, json_):
        return
    names = list(metric_means(values[0]))
    shown = table("template", "score", *names, title=f"{loaded.name}: {count} validation edits ({source})")
    for row in rows:
        shown.add_row(row["text"], f"{row['score']:.3f}", *(f"{row['metrics'][name]:.3f}" for name in names))
    out.print(shown)


app.command("optimize")(optimize)
