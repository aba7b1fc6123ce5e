"""``instructedit demo``: see an edit happen."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instructedit.cli.console import emit_json, out, progress, quiet_libraries, styled, table
from instructedit.cli.options import JsonFile, Model, TrainedEditor

if TYPE_CHECKING:
    from instructedit.editors.gradient import GradientEditor


def demo(
    edits: Annotated[int, typer.Option(min=1, help="Test edits a task in the table.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the drawn test edits.")] = 0,
    model: Model = "bundled",
    editor: TrainedEditor = "bundled",
    json_: JsonFile = None,
) -> None:
    """Edit the bundled model and see what changes: in words, then measured on six tasks.

    With the public data sets at hand (INSTRUCTEDIT_DATA) the table is measured on their test files, otherwise on
    edits that ship with the package. Every edit is made by itself on the same base model; queries carry no
    instruction (protocol `plain`), and the edits get descriptions that no training has seen. Beside the bundled
    editor stands multi-task MEND, which reads no instruction.
    """
    quiet_libraries()
    from instructedit.data import data_folder
    from instructedit.editors.files import BUNDLED_MEND, load_editor
    from instructedit.evaluation.demonstration import HEADLINES, SWAPPED, measure, shown_edits
    from instructedit.models.language_model import BUNDLED, load_language_model

    began = time.monotonic()
    language_model = load_language_model(model)
    trained = load_editor(editor, language_model)
    plain, scopes = shown_edits(trained, language_model)
    mend = load_editor(BUNDLED_MEND, language_model) if model == editor == BUNDLED else None
    with progress() as bar:
        job = bar.add_task("measuring", total=len(HEADLINES) * (2 if mend else 1) + len(SWAPPED), note="")

        def measured_on_tasks(
            measured: GradientEditor, swapped: bool
        ) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
            def show(name: str) -> None:
                bar.update(job, advance=1, note=f"{measured.name}, {name}")

            return measure(measured, language_model, data_folder(), edits, seed, swapped, show)

        tables, files = measured_on_tasks(trained, swapped=True)
        beside = measured_on_tasks(mend, swapped=False)[0] if mend is not None else {}
    seconds = round(time.monotonic() - began, 1)

    def in_words(shown: Any) -> dict[str, Any]:
        rows = [dict(zip(("asked", "why", "before", "after"), row, strict=True)) for row in shown.rows]
        return {
            "prompt": shown.request.prompt,
            "target": shown.request.target,
            "instruction": shown.instruction,
            "answers": rows,
        }

    if json_ is not None:
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
                "mend": beside,
            },
            json_,
        )
        if str(json_) == "-":
            return
    for shown in plain:
        out.print(_words(shown, styled(f"{shown.request.prompt} … ", (shown.request.target, "bold"))))
    out.print("\nThe same edit under two instructions", style="bold")
    for shown in scopes:
        out.print(_words(shown, shown.instruction.split("Description: ")[1]))
    heads = ["task", "metric", trained.name] + (["mend"] if beside else [])
    figures = table(*heads, title=f"{edits} test edits a task, protocol plain; means with 95% intervals")
    for name, row in tables.items():
        for number, (metric, value) in enumerate(row.items()):
            cells = [_cell(value)] + ([_cell(beside[name].get(metric))] if beside else [])
            figures.add_row(name if number == 0 else "", metric.replace("_", " "), *cells)
        figures.add_section()
    out.print(figures)
    out.print("Edits from: " + ", ".join(f"{name} ({file})" for name, file in files.items()), style="dim")
    out.print("Descriptions that no training has seen; ZsRE is held out: no editor is trained on it.", style="dim")
    out.print(f"{seconds} s on this machine.", style="dim")


def _cell(value: dict[str, float] | None) -> str:
    return "" if value is None else f"{value['mean']:.3f} ({value['low']:.3f}–{value['high']:.3f})"


def _words(shown: Any, title: Any) -> Any:
    answers = table("asked", "", "before", "after", title=title, title_justify="left")
    for prompt, why, before, after in shown.rows:
        answers.add_row(prompt, why, before, after)
    return answers
