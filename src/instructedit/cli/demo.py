"""``instructedit demo``: see an edit happen."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer
from rich.table import Table

from instructedit.cli.console import emit_json, out, progress, quiet_libraries
from instructedit.cli.options import EditorFile, Model


def demo(
    edits: Annotated[int, typer.Option(min=1, help="Test edits a task in the table.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the drawn test edits.")] = 0,
    model: Model = "bundled",
    editor: EditorFile = "bundled",
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
) -> None:
    """Edit the bundled model and see what changes: in words, then measured on six tasks.

    With the public data sets at hand (INSTRUCTEDIT_DATA) the table is measured on their test files, otherwise on
    edits that ship with the package. Every edit is made by itself on the same base model; queries carry no
    instruction (protocol `plain`), and the edits get descriptions that no training has seen.
    """
    quiet_libraries()
    from instructedit.data import data_folder
    from instructedit.editors.files import load_editor
    from instructedit.evaluation.demonstration import HEADLINES, measure, shown_edits
    from instructedit.models.language_model import load_language_model

    began = time.monotonic()
    language_model = load_language_model(model)
    trained = load_editor(editor, language_model)
    plain, scopes = shown_edits(trained, language_model)
    with progress() as bar:
        job = bar.add_task("measuring", total=len(HEADLINES) + 2, note="")
        tables, files = measure(
            trained, language_model, data_folder(), edits, seed, lambda name: bar.update(job, advance=1, note=name)
        )
    seconds = round(time.monotonic() - began, 1)

    def in_words(shown: Any) -> dict[str, Any]:
        rows = [dict(zip(("asked", "why", "before", "after"), row, strict=True)) for row in shown.rows]
        return {
            "prompt": shown.request.prompt,
            "target": shown.request.target,
            "instruction": shown.instruction,
            "answers": rows,
        }

    if json_:
        emit_json(
            {
                "model": model,
                "base": language_model.fingerprint,
                "editor": editor,
                "protocol": "plain",
                "instruction": "unseen",
                "seed": seed,
                "edits_a_task": edits,
                "interval": "95%, bootstrap over edits",
                "seconds": seconds,
                "edits": [in_words(shown) for shown in plain],
                "scope": [in_words(shown) for shown in scopes],
                "files": files,
                "tasks": tables,
            }
        )
        return
    for shown in plain:
        out.print(_words(shown, f"{shown.request.prompt} … [bold]{shown.request.target}[/]"))
    out.print("\n[bold]The same edit under two instructions[/]")
    for shown in scopes:
        out.print(_words(shown, shown.instruction.split("Description: ")[1]))
    figures = Table(
        "task",
        "metric",
        "mean",
        "95% interval",
        title=f"{edits} test edits a task, protocol plain, unseen instructions",
    )
    for name, row in tables.items():
        for number, (metric, value) in enumerate(row.items()):
            interval = f"{value['low']:.3f} to {value['high']:.3f}"
            figures.add_row(name if number == 0 else "", metric.replace("_", " "), f"{value['mean']:.3f}", interval)
        figures.add_section()
    out.print(figures)
    out.print("Edits from: " + ", ".join(f"{name} ({file})" for name, file in files.items()), style="dim")
    out.print(f"ZsRE is held out: no editor is trained on it. {seconds} s on this machine.", style="dim")


def _words(shown: Any, title: str) -> Table:
    table = Table("asked", "", "before", "after", title=title, title_justify="left")
    for prompt, why, before, after in shown.rows:
        table.add_row(prompt, why, before, after)
    return table
