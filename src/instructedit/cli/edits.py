"""``instructedit edits``: a ledger of edits, in a file or a database."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from instructedit.cli.console import emit_json, err, out, quiet_libraries, table
from instructedit.cli.options import Device, Dtype, EditorFile, JsonFile, Model, TemplateFile
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
    from instructedit.evaluation.health import HealthLimits
    from instructedit.ledger.entry import Entry
    from instructedit.ledger.ledger import Ledger
    from instructedit.ledger.tables import State
    from instructedit.tasks.task import Task

LEDGER_VARIABLE, DEFAULT_LEDGER = "INSTRUCTEDIT_LEDGER", "edits.db"

app = typer.Typer(
    help="Keep edits in a ledger: add, enable, disable, revert and rebuild them.\n\n"
    "A ledger is a file (`--ledger edits.db`, SQLite) or a database (`--ledger postgresql+psycopg://host/name`). It "
    "keeps every edit with its request, instruction, editor, base model, delta, author, time and report. The edited "
    "model follows from the enabled edits alone: `instructedit edits export e.safetensors` writes them as one delta.",
    no_args_is_help=True,
)

LedgerOption = Annotated[
    str | None,
    typer.Option(
        "--ledger",
        help=f"File or URL of the ledger; a file is created. Default: {LEDGER_VARIABLE}, or {DEFAULT_LEDGER} in this "
        "folder.",
    ),
]
Author = Annotated[str | None, typer.Option(help="Who makes the change. Default: the name of the user.")]
Reason = Annotated[str | None, typer.Option(help="Why, for the log.")]
Numbers = Annotated[list[int], typer.Argument(metavar="EDITS...", help="Numbers of the edits.")]
Number = Annotated[int, typer.Argument(help="Number of the edit.")]
NoReport = Annotated[bool, typer.Option("--no-report", help="Do not measure what each edit does by itself.")]


@app.command()
def add(
    prompt: Prompt = None,
    target: Target = None,
    subject: Subject = None,
    task: TaskName = None,
    instruction: Instruction = None,
    no_instruction: NoInstruction = False,
    template_file: TemplateFile = None,
    label: Label = None,
    requests: RequestFile = None,
    on_conflict: Annotated[
        Literal["refuse", "replace", "keep"],
        typer.Option(
            help="Where an enabled edit answers the same question in another way, or with another scope: `refuse` the "
            "new one, `replace` the old one, which is disabled, or `keep` both."
        ),
    ] = "refuse",
    gate: Annotated[
        Literal["refuse", "flag", "off"],
        typer.Option(
            help="Where the model is not healthy with all enabled edits: `refuse` the new ones, or `flag` them in the "
            "ledger. `off` measures nothing."
        ),
    ] = "refuse",
    limits: Annotated[
        Path | None,
        typer.Option(
            help="YAML file with other limits of the health: `perplexity` (relative increase), `divergence` (nats), "
            "`changed` (share of unrelated answers) and `norm` (relative); null for none."
        ),
    ] = None,
    combine: Combine = "merge",
    no_report: NoReport = False,
    ledger: LedgerOption = None,
    author: Author = None,
    model: Model = "bundled",
    editor: EditorFile = None,
    dtype: Dtype = "float32",
    device: Device = None,
    json_: JsonFile = None,
) -> None:
    """Make edits and add them to the ledger, all or none.

    For example `instructedit edits add --subject "Eiffel Tower" --prompt "Eiffel Tower is located in" --target Rome`.
    """
    prepare_computation()
    from instructedit.artifacts import editor_for
    from instructedit.ledger.session import Session
    from instructedit.models.language_model import load_language_model

    edits = requests_of(requests, prompt, target, subject, label, instruction)
    health = None if gate == "off" else _limits(limits)
    with _open(ledger, author, create=True) as opened:
        language_model = load_language_model(model, dtype=dtype, device=device)
        tasks: list[Task | None] = [None] * len(edits)
        notes: list[str] = []
        if not no_instruction:
            tasks, notes = tasks_of(edits, task, template_file, language_model)
        session = Session(language_model, opened, editor or editor_for(model), combine=combine, limits=health)
        added = session.edit(
            edits, tasks, on_conflict=on_conflict, gate="refuse" if gate == "off" else gate, report=not no_report
        )
        print_notes(notes, edits, session.editor)
    _show(added, json_)


@app.command("list")
def list_edits(
    state: Annotated[
        list[str] | None,
        typer.Option(help="Only edits in this state: enabled, disabled or reverted; repeatable. Default: all."),
    ] = None,
    ledger: LedgerOption = None,
    json_: JsonFile = None,
) -> None:
    """List the edits of a ledger."""
    quiet_libraries()
    with _open(ledger) as opened:
        _show(opened.edits(_states(state)), json_)


@app.command()
def show(number: Number, ledger: LedgerOption = None, json_: JsonFile = None) -> None:
    """Show all that the ledger knows about an edit."""
    quiet_libraries()
    with _open(ledger) as opened:
        entry = opened.edit(number)
        result = {**entry.as_dict(), "events": [event.as_dict() for event in opened.events(number)]}
    if emit_json(result, json_):
        return
    rows = table("field", "value", title=f"edit {number}")
    for name, value in result.items():
        if name in {"report", "events"} or value is None:
            continue
        nested = value.items() if isinstance(value, dict) else [("", value)]
        for part, inner in nested:
            rows.add_row(f"{name} {part}".strip(), str(inner))
    for answer in (result["report"] or {}).get("requests", []):
        rows.add_row("answer before", str(answer["before"]))
        rows.add_row("answer after", f"{answer['after']}{'' if answer['success'] else '  (not the target)'}")
    for event in result["events"]:
        reason = f": {event['reason']}" if event["reason"] else ""
        rows.add_row(event["time"][:19], f"{event['state']} by {event['author']}{reason}")
    out.print(rows)


@app.command()
def enable(
    numbers: Numbers, reason: Reason = None, ledger: LedgerOption = None, author: Author = None, json_: JsonFile = None
) -> None:
    """Enable disabled edits."""
    _set_state(numbers, "enabled", reason, ledger, author, json_)


@app.command()
def disable(
    numbers: Numbers, reason: Reason = None, ledger: LedgerOption = None, author: Author = None, json_: JsonFile = None
) -> None:
    """Disable edits; they can be enabled again."""
    _set_state(numbers, "disabled", reason, ledger, author, json_)


@app.command()
def revert(
    numbers: Numbers, reason: Reason = None, ledger: LedgerOption = None, author: Author = None, json_: JsonFile = None
) -> None:
    """Take edits back for good; they stay in the ledger for the record."""
    _set_state(numbers, "reverted", reason, ledger, author, json_)


@app.command()
def diff(
    first: Annotated[int, typer.Argument(help="Number of an edit.")],
    second: Annotated[int, typer.Argument(help="Number of another one.")],
    ledger: LedgerOption = None,
    json_: JsonFile = None,
) -> None:
    """Show what two edits differ in: request, instruction, editor, base model, and the change itself.

    The cosine compares the changes of two edits of one base model: 1 is the same direction, 0 has nothing in common.
    """
    prepare_computation()
    from instructedit.ledger.comparison import compare

    with _open(ledger) as opened:
        result = compare(opened, first, second)
    if emit_json(result, json_):
        return
    rows = table("field", f"edit {first}", f"edit {second}")
    for name, (one, other) in result["fields"].items():
        rows.add_row(name, str(one), str(other))
    rows.add_row("norm of the change", *(f"{norm:.3g}" for norm in result["norms"]))
    out.print(rows)
    out.print(
        "the changes are of different base models"
        if result["cosine"] is None
        else f"cosine of the changes: {result['cosine']:.3f}"
    )


@app.command()
def rebuild(
    numbers: Annotated[
        list[int] | None, typer.Argument(metavar="EDITS...", help="Numbers of the edits. Default: all enabled ones.")
    ] = None,
    combine: Combine = "merge",
    no_report: NoReport = False,
    ledger: LedgerOption = None,
    author: Author = None,
    model: Model = "bundled",
    editor: EditorFile = None,
    dtype: Dtype = "float32",
    device: Device = None,
    json_: JsonFile = None,
) -> None:
    """Make edits again from their requests, by another editor or for another base model.

    A new edit that does not give its target is added disabled. Exit code 1 if there is one.
    """
    prepare_computation()
    from instructedit.artifacts import editor_for
    from instructedit.ledger.session import Session
    from instructedit.ledger.tables import State
    from instructedit.models.language_model import load_language_model

    with _open(ledger, author) as opened:
        chosen = numbers or [entry.id for entry in opened.edits([State.ENABLED])]
        for number in chosen:
            opened.edit(number)  # fail on a wrong number before a model is loaded
        language_model = load_language_model(model, dtype=dtype, device=device)
        session = Session(language_model, opened, editor or editor_for(model), combine=combine)
        rebuilt = session.rebuild(chosen, report=not no_report)
    result = [{"old": each.old.id, "new": each.new.id, "succeeds": each.succeeds} for each in rebuilt]
    if not emit_json(result, json_):
        rows = table("edit", "new", "prompt", "target", "gives its target")
        for each in rebuilt:
            request = each.new.request
            succeeds = "yes" if each.succeeds else "NO, added disabled"
            rows.add_row(str(each.old.id), str(each.new.id), request.prompt, request.target, succeeds)
        out.print(rows)
    if not all(each.succeeds for each in rebuilt):
        raise typer.Exit(1)


@app.command()
def export(
    path: Annotated[
        Path,
        typer.Argument(
            help="A new folder, for `instructedit edits import`; or a file that ends in .safetensors, for the change "
            "of the edits together, as `instructedit edit --apply` and `instructedit export` read it."
        ),
    ],
    numbers: Annotated[
        list[int] | None,
        typer.Argument(
            metavar="EDITS...", help="Numbers of the edits. Default: all; for a file all enabled ones of the model."
        ),
    ] = None,
    combine: Combine = "merge",
    ledger: LedgerOption = None,
    model: Model = "bundled",
    dtype: Dtype = "float32",
    device: Device = None,
) -> None:
    """Write edits into a folder, or their joint change into a delta file."""
    if path.suffix != ".safetensors":
        quiet_libraries()
        from instructedit.ledger.archive import write_archive

        with _open(ledger) as opened:
            entries = [opened.edit(number) for number in numbers] if numbers else opened.edits()
            write_archive(opened, entries, path)
        err.print(f"{len(entries)} edit(s) written to {path}")
        return
    prepare_computation()
    from instructedit.deltas.saving import save_delta
    from instructedit.ledger.session import Session
    from instructedit.models.language_model import load_language_model

    with _open(ledger) as opened:
        chosen = [opened.edit(number) for number in numbers] if numbers else None
        language_model = load_language_model(model, dtype=dtype, device=device)
        session = Session(language_model, opened, combine=combine)
        delta = session.delta(chosen)
    if delta is None:
        raise DataError(f"no enabled edit of the ledger was made for {model}; `instructedit edits list` shows all")
    save_delta(delta, path)
    err.print(f"{len(delta.metadata.requests)} edit(s) written to {path}")


@app.command("import")
def import_edits(
    folder: Annotated[Path, typer.Argument(help="Folder that `instructedit edits export` wrote.")],
    ledger: LedgerOption = None,
    json_: JsonFile = None,
) -> None:
    """Add the edits of a folder, with their history; edits that the ledger has already are left out."""
    prepare_computation()
    from instructedit.ledger.archive import read_archive

    with _open(ledger, create=True) as opened:
        added, known = read_archive(opened, folder)
    if known:
        err.print(f"{known} edit(s) are in the ledger already")
    _show(added, json_)


@app.command()
def verify(ledger: LedgerOption = None, json_: JsonFile = None) -> None:
    """Read everything in a ledger, and check it. Exit code 1 if something is damaged.

    Every delta has to match its checksum and the request of its edit, and every edit the last of its events.
    """
    prepare_computation()
    with _open(ledger) as opened:
        problems = opened.problems()
        count = len(opened.edits())
    if not emit_json({"edits": count, "problems": problems}, json_):
        for problem in problems:
            out.print(problem)
        out.print(f"{count} edit(s), {len(problems)} problem(s)")
    if problems:
        raise typer.Exit(1)


@app.command()
def gc(ledger: LedgerOption = None, json_: JsonFile = None) -> None:
    """Delete what can be computed again: the joint change of several edits. No edit is touched."""
    quiet_libraries()
    with _open(ledger) as opened:
        count, size = opened.collect_garbage()
    if not emit_json({"deltas": count, "bytes": size}, json_):
        out.print(f"{count} delta(s) deleted, {size / 1e6:.1f} MB")


@app.command()
def log(
    number: Annotated[int | None, typer.Argument(help="Number of an edit. Default: all edits.")] = None,
    ledger: LedgerOption = None,
    json_: JsonFile = None,
) -> None:
    """Show what happened to an edit, or to all, in order."""
    quiet_libraries()
    with _open(ledger) as opened:
        if number is not None:
            opened.edit(number)
        events = opened.events(number)
    if emit_json([event.as_dict() for event in events], json_):
        return
    rows = table("time (UTC)", "edit", "state", "by", "reason")
    for event in events:
        rows.add_row(f"{event.time:%Y-%m-%d %H:%M:%S}", str(event.edit), event.state, event.author, event.reason or "")
    out.print(rows)


def _open(where: str | None, author: str | None = None, *, create: bool = False) -> Ledger:
    from instructedit.ledger.ledger import Ledger

    return Ledger(where or os.environ.get(LEDGER_VARIABLE) or DEFAULT_LEDGER, author, create=create)


def _states(names: Sequence[str] | None) -> list[State]:
    from instructedit.ledger.tables import State

    known = [state.value for state in State]
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise DataError(f"--state {unknown[0]}: expected one of {', '.join(known)}")
    return [State(name) for name in names or known]


def _limits(file: Path | None) -> HealthLimits:
    from pydantic import ValidationError

    from instructedit.errors import validation_messages
    from instructedit.evaluation.health import HealthLimits
    from instructedit.storage.reading import read_yaml_file

    try:
        return HealthLimits() if file is None else HealthLimits.model_validate(read_yaml_file(file))
    except ValidationError as error:
        raise DataError("; ".join(validation_messages(error)), file=file) from None


def _set_state(
    numbers: Sequence[int],
    state: str,
    reason: str | None,
    ledger: str | None,
    author: str | None,
    json_: Path | None,
) -> None:
    quiet_libraries()
    from instructedit.ledger.tables import State

    with _open(ledger, author) as opened:
        _show(opened.set_state(numbers, State(state), reason), json_)


def _show(entries: Sequence[Entry], json_: Path | None) -> None:
    """Print edits as a table, or as JSON."""
    listed: list[dict[str, Any]] = [entry.as_dict() for entry in entries]
    if emit_json(listed, json_):
        return
    rows = table("edit", "state", "prompt", "target", "gives its target", "editor", "added (UTC)")
    for entry in entries:
        succeeded = (entry.report or {}).get("succeeded")
        flagged = ", unhealthy" if (entry.health or {}).get("exceeded") else ""
        rows.add_row(
            str(entry.id),
            entry.state + flagged,
            entry.request.prompt,
            entry.request.target,
            "" if succeeded is None else "yes" if succeeded else "NO",
            entry.editor,
            f"{entry.created:%Y-%m-%d %H:%M}",
        )
    out.print(rows)
