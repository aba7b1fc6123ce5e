"""``instructedit instructions``: write, try and improve the texts that steer an editor."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from instructedit.cli.console import emit_json, err, out, progress, quiet_libraries, styled, table
from instructedit.cli.options import BankFile, Device, Dtype, EditorFile, JsonFile, Model, writable
from instructedit.errors import DataError

if TYPE_CHECKING:
    from instructedit.instructions.proposers import Proposer
    from instructedit.instructions.trial import Trial
    from instructedit.models.language_model import LanguageModel
    from instructedit.tasks.task import Task

app = typer.Typer(
    help="Write, try and improve the instructions of a task.\n\n"
    "`show` prints a bank, `generate` writes candidates, `score` tries a bank on validation edits, and `optimize` goes "
    "round: propose, try, propose again from what came out. Test edits are never touched.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

TaskName = Annotated[str, typer.Option("--task", help="A task's name or its YAML file.")]
ProposerName = Annotated[
    str, typer.Option(help="offline (a grammar, no network) or endpoint (OpenAI-compatible chat completions).")
]
BaseUrl = Annotated[str, typer.Option(help="Endpoint: its address.")]
LanguageModelName = Annotated[str | None, typer.Option("--proposer-model", help="Endpoint: the model's name there.")]
KeyVariable = Annotated[str, typer.Option("--key-env", help="Endpoint: environment variable that holds the key.")]
Data = Annotated[Path | None, typer.Option(help="Validation edits; default: what the editor's training held out.")]
Seed = Annotated[int, typer.Option(help="Seed of the drawn edits and the offline proposals.")]
_OPENAI = "https://api.openai.com/v1"


def _proposer(
    name: str, seed: int, base_url: str, model: str | None, key_variable: str, stray: float = 0.4
) -> Proposer:
    from instructedit.instructions.proposers import EndpointProposer, OfflineProposer

    if name == "offline":
        return OfflineProposer(seed, stray)
    if name != "endpoint":
        raise DataError(f"--proposer takes offline or endpoint, not {name!r}")
    if model is None:
        raise DataError("the endpoint proposer needs --proposer-model")
    if not os.environ.get(key_variable, "").strip():  # perhaps the key itself was given: it is not said back
        raise DataError("--key-env takes the NAME of an environment variable that holds the key; this one is not set")
    public_address(base_url)
    return EndpointProposer(model, base_url, key_variable)


def public_address(url: str) -> str:
    """The endpoint's address without what may be secret in it: user, password and query.

    Raises:
        DataError: it is no address.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise DataError("--base-url takes an address such as https://api.openai.com/v1")
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _trial(
    task: Task, language_model: LanguageModel, editor: str, edits: int, seed: int, data: Path | None
) -> tuple[Trial, str]:
    """The editor on validation edits, and where these come from."""
    from instructedit.data.pool import RecordPool
    from instructedit.editors.lookup import find_editor
    from instructedit.instructions.edits import validation_edits
    from instructedit.instructions.trial import Trial

    records, source = validation_edits(task, editor, edits, seed, data)
    if task.is_wider:  # every text is to meet the same probes, whatever else is tried along with it
        pool = RecordPool(records)
        records = [pool.completed(record, 2, seed) for record in records]
    return Trial(find_editor(editor, language_model), language_model, task, records, seed), source


def seconds_of(budget: str) -> float:
    """``90s``, ``20m``, ``2h`` or plain minutes, in seconds.

    Raises:
        DataError: it is none of them.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", budget.strip())
    if match is None:
        raise DataError(f"--budget takes a time such as 90s, 20m or 2h, not {budget!r}")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "": 60}[match[2]]


@app.command()
def show(task: TaskName, bank: BankFile = None, json_: JsonFile = None) -> None:
    """Print the instructions of a task, or of a bank with where each comes from."""
    from instructedit.instructions.bank import task_with
    from instructedit.storage.reading import read_yaml_file

    found = task_with(task, bank)
    raw = read_yaml_file(bank) if bank is not None else {}
    if json_ is not None:
        emit_json({**found.instructions.model_dump(mode="json"), "provenance": raw.get("provenance", {})}, json_)
        return
    out.print(styled((found.name, "bold"), f": {found.summary}"))
    origins = _origins(raw)
    for number, text in enumerate(found.instructions.descriptions, start=1):
        out.print(f"{number:>3}. {text}{origins.get(text, '')}")


def _origins(bank: Any) -> dict[str, str]:
    """Who proposed each text of a bank file, in words; what people have written into it themselves says nothing."""
    provenance = bank.get("provenance") if isinstance(bank, dict) else None
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
        Path | None, typer.Option("--out", callback=writable, help="Write them as a bank (YAML).")
    ] = None,
    base_url: BaseUrl = _OPENAI,
    proposer_model: LanguageModelName = None,
    key_variable: KeyVariable = "OPENAI_API_KEY",
    seed: Seed = 0,
) -> None:
    """Write candidates without trying them. What cannot be an instruction is left out, with the reason."""
    from instructedit.instructions.bank import write_bank
    from instructedit.instructions.candidates import Candidate, fault
    from instructedit.instructions.proposers import Asked, Ranked
    from instructedit.tasks.task import load_task

    found = load_task(task)
    writer = _proposer(proposer, seed, base_url, proposer_model, key_variable, stray=0.0)
    texts: list[Candidate] = []
    known = tuple(Ranked(text, {}, 0.0) for text in found.instructions.descriptions)
    for text, parent in writer.propose(Asked(found, (), known, count, 1), lambda call: None):
        reason = fault(text, found)
        if reason is None and text in {*found.instructions.descriptions, *(each.text for each in texts)}:
            reason = "was there before"
        if reason is None:
            texts.append(Candidate(text, writer.name, parent, 1))
            out.print(text)
        else:
            err.print(f"left out, it {reason}: {text!r}")
    if out_file is not None:
        if len(texts) < 2:
            raise DataError(f"a bank needs two instructions, and {len(texts)} came out")
        write_bank(out_file, found, texts, {"proposer": writer.name, "seed": seed}, {})
        err.print(f"written to {out_file}")


@app.command()
def score(
    task: TaskName,
    bank: BankFile = None,
    data: Data = None,
    edits: Annotated[int, typer.Option(min=1, help="Validation edits.")] = 60,
    model: Model = "bundled",
    editor: EditorFile = "bundled",
    dtype: Dtype = "float32",
    device: Device = None,
    seed: Seed = 0,
    json_: JsonFile = None,
) -> None:
    """Try every instruction of a bank on validation edits, all in one batched evaluation."""
    quiet_libraries()
    from instructedit.evaluation.intervals import estimate
    from instructedit.instructions.bank import task_with
    from instructedit.instructions.trial import by_edit, means, overall
    from instructedit.models.language_model import load_language_model

    found = task_with(task, bank)
    trial, source = _trial(found, load_language_model(model, dtype=dtype, device=device), editor, edits, seed, data)
    records = trial.records
    texts = found.instructions.descriptions
    with progress() as bar:
        job = bar.add_task("trying", total=len(texts) * len(records), note="")
        values = trial.values(texts, 0, len(records), lambda done: bar.update(job, completed=done))
    rows = [
        {"text": text, "score": overall(each), "metrics": means(each), "mean": estimate(by_edit(each)).as_dict()}
        for text, each in zip(texts, values, strict=True)
    ]
    rows.sort(key=lambda row: -float(str(row["score"])))
    if json_ is not None:
        emit_json({"task": found.name, "edits": len(records), "of": source, "rows": rows}, json_)
        if str(json_) == "-":
            return
    names = list(means(values[0]))
    figures = table("instruction", "score", *names, title=f"{found.name}: {len(records)} edits, {source}")
    for row in rows:
        metrics: Any = row["metrics"]
        figures.add_row(str(row["text"]), f"{row['score']:.3f}", *(f"{metrics[name]:.3f}" for name in names))
    out.print(figures)


@app.command()
def optimize(
    task: TaskName,
    out_file: Annotated[
        Path, typer.Option("--out", callback=writable, help="The bank (YAML); the trace goes beside it (.trace.jsonl).")
    ],
    proposer: ProposerName = "offline",
    budget: Annotated[str, typer.Option(help="Time for all runs together: 90s, 20m, 2h.")] = "20m",
    rounds: Annotated[
        int, typer.Option(min=1, help="At most this many rounds of proposals (calls of an endpoint).")
    ] = 100,
    candidates: Annotated[int, typer.Option(min=1, help="Candidates in each round.")] = 24,
    patience: Annotated[int, typer.Option(min=1, help="Rounds without a better metric before it ends.")] = 3,
    bank: BankFile = None,
    data: Data = None,
    edits: Annotated[int, typer.Option(min=3, help="Validation edits; a third of them only compares at the end.")] = 96,
    base_url: BaseUrl = _OPENAI,
    proposer_model: LanguageModelName = None,
    key_variable: KeyVariable = "OPENAI_API_KEY",
    model: Model = "bundled",
    editor: EditorFile = "bundled",
    dtype: Dtype = "float32",
    device: Device = None,
    seed: Seed = 0,
    json_: JsonFile = None,
) -> None:
    """Look for better instructions: propose, try, and propose again from what came out.

    Candidates are tried with the editor as it is, on edits that it was not trained on: all on a few, the better half on
    twice as many, and so on. At the end the ten best are compared with the starting ten on edits that chose nothing;
    only a gain whose interval lies above zero makes a new bank. A run that was stopped goes on from its trace
    and tries nothing twice.
    """
    quiet_libraries()
    from instructedit.editors.saving import digest_of
    from instructedit.instructions.bank import task_with, write_bank
    from instructedit.instructions.optimise import Budget, optimise
    from instructedit.instructions.proposers import Ranked
    from instructedit.instructions.trace import Trace
    from instructedit.models.language_model import load_language_model
    from instructedit.storage.writing import check_writable

    limit = Budget(seconds_of(budget), rounds, patience, candidates)
    found = task_with(task, bank)
    writer = _proposer(proposer, seed, base_url, proposer_model, key_variable)
    trace_file = out_file.with_name(f"{out_file.stem}.trace.jsonl")
    check_writable(trace_file)
    language_model = load_language_model(model, dtype=dtype, device=device)
    trial, source = _trial(found, language_model, editor, edits, seed, data)
    records = trial.records
    settings = {
        "task": found.name,
        "start": list(found.instructions.descriptions),
        "base": language_model.fingerprint,
        "editor": editor,
        "editor_digest": digest_of(editor),
        "proposer": writer.name,
        "proposer_model": proposer_model,
        "base_url": public_address(base_url) if proposer_model else None,
        "edits": [record.record_id for record in records],
        "of": source,
        "seed": seed,
        "candidates": candidates,
    }
    trace = Trace(trace_file, settings)
    with progress() as bar:
        job = bar.add_task("rounds", total=rounds, note="starting bank")

        def shown(number: int, best: Ranked) -> None:
            bar.update(job, completed=number, note=f"best {best.score:.3f}: {best.text[:60]}")

        outcome = optimise(found, trial, writer, trace, limit, shown)
    provenance: dict[str, Any] = {
        key: settings[key] for key in ("base", "editor", "editor_digest", "proposer", "proposer_model", "seed", "of")
    }
    provenance |= {
        "edits": len(records),
        "improved": outcome.improved,
        "gain": outcome.gain.as_dict(),
        "metrics": {who: {k: round(v, 5) for k, v in row.items()} for who, row in outcome.metrics.items()},
        "stopped": outcome.stopped,
        "rounds": outcome.rounds,
        "tried": outcome.tried,
    }
    write_bank(out_file, found, outcome.texts, provenance, outcome.scores)
    if json_ is not None:
        emit_json({**provenance, "bank": str(out_file), "trace": str(trace.path)}, json_)
        if str(json_) == "-":
            return
    figures = table(
        "instructions", *outcome.metrics["start"], title=f"{found.name}: edits that chose nothing ({source})"
    )
    for who, row in outcome.metrics.items():
        figures.add_row(
            "the ten best" if who == "new" else "starting bank", *(f"{value:.3f}" for value in row.values())
        )
    out.print(figures)
    gain = outcome.gain
    said = "better" if outcome.improved else "no gain found, the bank holds the starting instructions"
    out.print(f"difference {100 * gain.mean:+.2f} points ({100 * gain.low:+.2f} to {100 * gain.high:+.2f}): {said}")
    out.print(f"{outcome.tried} texts tried in {outcome.rounds} rounds; ended because {outcome.stopped}")
    err.print(f"bank: {out_file}\ntrace: {trace.path}")
