"""``instructedit demo``: edit a model and measure the effect."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instructedit.artifacts import DEMO, base_of, demo_file, shipped_editors
from instructedit.cli.console import emit_json, err, out, progress, styled, table
from instructedit.cli.options import JsonFile, known_model
from instructedit.cli.threads import prepare_computation
from instructedit.errors import DataError, ModelError
from instructedit.models.catalogue import known_models

if TYPE_CHECKING:
    from instructedit.editors.gradient import GradientEditor
    from instructedit.evaluation.demonstration import EditExample
    from instructedit.models.language_model import LanguageModel

#: The shipped editor, and its base model, that need no download.
BUNDLED = "bundled"
#: Shipped editors that the demo prefers, if their base models can be downloaded.
PREFERRED = ("smollm2",)
Tables = Mapping[str, Mapping[str, Any]]


def demo(
    edits: Annotated[
        int | None, typer.Option(min=1, help="Number of test edits per task. Default: that of the editor's demo.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed for the test edits.")] = 0,
    model: Annotated[
        str | None,
        typer.Option(
            callback=known_model,
            help="Base model: a name that `instructedit models` lists, a checkpoint folder, a GGUF file, or a hub id. "
            "Default: that of the editor.",
        ),
    ] = None,
    editor: Annotated[
        str | None,
        typer.Option(
            help="Editor: a shipped one, or a file written by `instructedit train`. Default: that of a pretrained "
            "model if the model can be downloaded, else `bundled`."
        ),
    ] = None,
    json_: JsonFile = None,
) -> None:
    """Edit a model: show answers before and after a few edits, then metrics on several tasks.

    Metrics are computed on the test files of the public data sets if INSTRUCTEDIT_DATA is set to their folder,
    otherwise on edits that ship with the package. Every edit is applied separately to the unedited base model. Edits
    use held-out instruction templates, queries contain no instruction (protocol `plain`). Baseline: multi-task MEND,
    which ignores instructions.
    """
    prepare_computation()
    from instructedit.editors.saving import load_trained_editor
    from instructedit.evaluation.demonstration import make_examples
    from instructedit.models.language_model import load_language_model
    from instructedit.storage.reading import as_mapping, read_yaml_file

    began = time.monotonic()
    model, editor = _choose(model, editor)
    language_model = load_language_model(model, dtype="bfloat16" if model in known_models() else "float32")
    trained = load_trained_editor(editor, language_model)
    own_script = demo_file(editor)
    script_file = own_script or shipped_editors()[BUNDLED] / DEMO
    script = as_mapping(read_yaml_file(script_file), script_file)
    single, scopes = make_examples(trained, language_model, script)
    mend = load_trained_editor(script["baseline"], language_model) if own_script and "baseline" in script else None
    edits = edits or int(script["test_edits"])
    tables, mend_tables, files = _measure(trained, mend, language_model, edits, seed)
    seconds = round(time.monotonic() - began, 1)
    content = {
        "model": model,
        "base": language_model.fingerprint,
        "editor": editor,
        "protocol": "plain",
        "instruction": "unseen",
        "seed": seed,
        "edits_per_task": edits,
        "interval": "95%, bootstrap over edits",
        "seconds": seconds,
        "edits": [_as_dict(example) for example in single],
        "scope": [_as_dict(example) for example in scopes],
        "files": files,
        "tasks": tables,
        "mend": mend_tables,
    }
    if emit_json(content, json_):
        return
    _print_examples(single, scopes)
    _print_table(trained.name, tables, mend_tables, edits)
    out.print("Edit files: " + ", ".join(f"{name} ({file})" for name, file in files.items()), style="dim")
    for line in _remarks(model, single, tables, mend_tables, files):
        out.print(line)
    out.print(f"Time: {seconds} s.", style="dim")


def _choose(model: str | None, editor: str | None) -> tuple[str, str]:
    """Return model and editor, where one is not given the one that belongs to the other."""
    from instructedit.models.fetch import fetch_model

    if editor is not None:
        return model or (base_of(editor) if editor in shipped_editors() else BUNDLED), editor
    if model is not None:
        return model, next((name for name in (*PREFERRED, BUNDLED) if _fits(name, model)), BUNDLED)
    for name in PREFERRED:
        if name in shipped_editors():
            base = base_of(name)
            try:
                fetch_model(known_models()[base], on_step=err.print)
            except (ModelError, DataError) as error:
                reason = str(error).splitlines()[0]
                err.print(f"{base} cannot be downloaded, the bundled model is used instead: {reason}")
            else:
                return base, name
    return BUNDLED, BUNDLED


def _fits(editor: str, model: str) -> bool:
    return editor in shipped_editors() and base_of(editor) == model


def _measure(
    editor: GradientEditor, mend: GradientEditor | None, language_model: LanguageModel, edits: int, seed: int
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]], dict[str, str]]:
    """Return the metrics of the editor and of MEND by task, and the files, behind a progress bar."""
    from instructedit.data.locations import data_folder
    from instructedit.evaluation.demonstration import demo_tasks, measure_tasks

    tasks = demo_tasks()
    swaps = sum(task.scope_metric is not None for task in tasks)
    with progress() as bar:
        job = bar.add_task("measuring", total=len(tasks) * (2 if mend else 1) + swaps, note="")

        def run(measured: GradientEditor, swapped: bool) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
            def show(name: str) -> None:
                bar.update(job, advance=1, note=f"{measured.name}, {name}")

            return measure_tasks(measured, language_model, data_folder(), edits, seed, swapped, show)

        tables, files = run(editor, swapped=True)
        mend_tables = run(mend, swapped=False)[0] if mend is not None else {}
    return tables, mend_tables, files


def _as_dict(example: EditExample) -> dict[str, Any]:
    """Return an example for the JSON."""
    return {
        "prompt": example.request.prompt,
        "target": example.request.target,
        "instruction": example.instruction,
        "answers": [
            {"prompt": answer.prompt, "kind": answer.kind, "before": answer.before, "after": answer.after}
            for answer in example.answers
        ],
    }


def _print_examples(single: Sequence[EditExample], scopes: Sequence[EditExample]) -> None:
    for example in single:
        out.print(_answers(example, styled(f"{example.request.prompt} … ", (example.request.target, "bold"))))
    out.print("\nThe same edit under two instructions", style="bold")
    for example in scopes:
        out.print(_answers(example, example.instruction.split("Description: ")[1]))


def _answers(example: EditExample, title: Any) -> Any:
    rows = table("prompt", "kind", "before", "after", title=title, title_justify="left")
    for answer in example.answers:
        rows.add_row(answer.prompt, answer.kind, answer.before, answer.after)
    return rows


def _print_table(editor: str, tables: Tables, mend_tables: Tables, edits: int) -> None:
    heads = ["task", "metric", editor] + (["mend"] if mend_tables else [])
    rows = table(*heads, title=f"{edits} test edits per task, protocol plain; mean (95% interval)")
    for name, row in tables.items():
        for number, (metric, value) in enumerate(row.items()):
            cells = [_cell(value)] + ([_cell(mend_tables[name].get(metric))] if mend_tables else [])
            rows.add_row(name if number == 0 else "", metric.replace("_", " "), *cells)
        rows.add_section()
    out.print(rows)


def _cell(value: Mapping[str, float] | None) -> str:
    return "" if value is None else f"{value['mean']:.3f} ({value['low']:.3f}–{value['high']:.3f})"


def _remarks(
    model: str, single: Sequence[EditExample], tables: Tables, mend_tables: Tables, files: Mapping[str, str]
) -> list[str]:
    """Return remarks on the results: failed paraphrases, the data, and where MEND is better."""
    from instructedit.data.locations import BUNDLED_PREFIX
    from instructedit.evaluation.generation import matches

    remarks = []
    for example in single:
        target = example.request.target
        remarks += [
            f"The paraphrase {answer.prompt!r} does not give {target!r}."
            for answer in example.answers
            if answer.kind == "paraphrase" and not matches(answer.after, [target])
        ]
    if any(file.startswith(BUNDLED_PREFIX) for file in files.values()):
        remarks.append(
            "In the bundled edits, neighbours have the same prompt template as the edit; therefore locality is lower "
            "than on the public test files, which the README's results use (INSTRUCTEDIT_DATA)."
        )
    remarks.append(
        "An instruction is the task's name, which occurs in training, and a held-out template. ZsRE is held out from "
        "the training of the editor."
    )
    if model == BUNDLED:
        remarks.append(
            "With this editor the name alone determines most of the scope (docs/limits.md). The base model was trained "
            "on the true answers of these edits, of ZsRE, too."
        )
    ahead = [
        f"{task} {metric.replace('_', ' ')}"
        for task, row in tables.items()
        for metric, value in row.items()
        if metric in mend_tables.get(task, {}) and mend_tables[task][metric]["mean"] > value["mean"]
    ]
    if ahead:
        remarks.append(f"MEND, which ignores instructions, has a higher mean for: {', '.join(ahead)}.")
    return remarks
