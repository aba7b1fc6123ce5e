"""``instructedit demo``: see an edit happen."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
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
    from instructedit.data.locations import data_folder
    from instructedit.editors.saving import BUNDLED_MEND, load_editor
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
    for line in _remarks(plain, tables, beside, files):
        out.print(line)
    out.print(f"{seconds} s on this machine.", style="dim")


def _remarks(
    plain: Sequence[Any],
    tables: Mapping[str, Mapping[str, Any]],
    beside: Mapping[str, Mapping[str, Any]],
    files: Mapping[str, str],
) -> list[str]:
    """What a reader should know of the figures above, made from the figures themselves."""
    from instructedit.evaluation.generation import matches

    remarks = []
    for shown in plain:
        wanted = shown.request.target
        missed = [row[0] for row in shown.rows if row[1] == "paraphrase" and not matches(row[3], [wanted])]
        remarks += [f"Did not take in other words: {prompt!r} does not give {wanted!r}." for prompt in missed]
    if any(file.startswith("own/") for file in files.values()):
        remarks.append(
            "These are edits in our own templates, whose neighbours are asked in the edit's own sentence: they are "
            "kept less often than those of the public files, on which the README's figures are measured "
            "(INSTRUCTEDIT_DATA)."
        )
    remarks.append(
        "Every description is the tenth of its task, which no training has seen, behind the task's name, which "
        "training has: the name alone decides most of the scope (README). The base model was taught the true answers "
        "of these edits; ZsRE is held out from the editor only."
    )
    ahead = [
        f"{task} {metric.replace('_', ' ')}"
        for task, row in tables.items()
        for metric, value in row.items()
        if metric in beside.get(task, {}) and beside[task][metric]["mean"] > value["mean"]
    ]
    if ahead:
        remarks.append(f"MEND, which ignores instructions, has the higher mean in: {', '.join(ahead)}.")
    return remarks


def _cell(value: dict[str, float] | None) -> str:
    return "" if value is None else f"{value['mean']:.3f} ({value['low']:.3f}–{value['high']:.3f})"


def _words(shown: Any, title: Any) -> Any:
    answers = table("asked", "", "before", "after", title=title, title_justify="left")
    for prompt, why, before, after in shown.rows:
        answers.add_row(prompt, why, before, after)
    return answers
