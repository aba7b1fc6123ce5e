"""``instructedit analyze``: analyse an editor's gradient directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instructedit.cli.console import emit_json, err, out, progress
from instructedit.cli.options import Device, Dtype, Model
from instructedit.cli.threads import prepare_computation
from instructedit.errors import DataError, EditorError
from instructedit.storage.reading import read_json_file

if TYPE_CHECKING:
    from instructedit.analysis.report import Directions, TaskEdits

app = typer.Typer(help="Analyse the gradient directions of editors.", no_args_is_help=True, rich_markup_mode="markdown")


@app.callback()
def analyze() -> None:
    """Analyse the gradient directions of editors."""


@app.command("directions")
def directions_command(
    editor: Annotated[
        list[str],
        typer.Option(
            help="Editor with its label in the table, as `label=file`; repeatable. `label=task:file,task:file` uses a "
            "different editor for each task."
        ),
    ],
    out_folder: Annotated[
        Path, typer.Option("--out", help="Output folder for `directions.json`, `directions.md` and the figures.")
    ],
    task: Annotated[
        list[str] | None,
        typer.Option(help="Task of the edits; repeatable, at least two. Default: all tasks with a `routing` field."),
    ] = None,
    limit: Annotated[int, typer.Option(min=10, help="Number of test edits per task.")] = 100,
    results: Annotated[
        list[Path] | None,
        typer.Option(
            help="`result.json` of `instructedit reproduce`; repeatable. Adds the correlation of separability "
            "with the Reliability of the editors."
        ),
    ] = None,
    held_out: Annotated[str, typer.Option(help="Name of the test in --results whose Reliability is used.")] = "zsre",
    model: Model = "bundled",
    dtype: Dtype = "float32",
    device: Device = None,
    seed: Annotated[int, typer.Option(help="Random seed for the edits and the projections.")] = 0,
) -> None:
    """Measure how separable the tasks are in an editor's gradient directions, and how much the instruction explains.

    For every edited matrix and both factors of the pseudo-gradient (u and delta): silhouette score, accuracy of a
    linear probe, angles between the tasks' subspaces, the share of the variance explained by the instruction when the
    same edits are made under every task's instruction, and a figure (PCA and t-SNE). This share is zero for an editor
    that ignores its instruction.
    """
    prepare_computation()
    try:
        from instructedit.analysis.report import LabelledEditor, TaskEdits, analyse
    except ImportError as error:
        raise EditorError(
            f"the analysis needs the package {error.name}: pip install 'instructedit[analysis]'"
        ) from None
    from instructedit.data.locations import data_folder
    from instructedit.models.language_model import load_language_model
    from instructedit.storage.writing import make_folder
    from instructedit.tasks.edits import sample_test_edits
    from instructedit.tasks.loading import listed_tasks, load_task

    names = task or [each.name for each in listed_tasks() if each.routing is not None]
    editors = [LabelledEditor.parse(text, names) for text in editor]
    reliability = _reliability(results or [], held_out)
    make_folder(out_folder)
    language_model = load_language_model(model, dtype=dtype, device=device)
    tasks = [load_task(name) for name in names]
    edits = [TaskEdits(each, sample_test_edits(each, data_folder(), limit, seed)[0]) for each in tasks]
    if len(edits) < 2:
        raise DataError("the analysis compares tasks; give at least two with --task")
    with progress() as bar:
        job = bar.add_task("editors", total=len(editors), note="")
        rows, vectors = analyse(
            editors, language_model, edits, seed, lambda label: bar.update(job, advance=1, note=label)
        )
    out.print(_write_report(out_folder, rows, vectors, edits, reliability, seed))
    err.print(f"written to {out_folder}")


def _write_report(
    folder: Path,
    rows: list[dict[str, Any]],
    vectors: Mapping[str, Directions],
    edits: Sequence[TaskEdits],
    reliability: Mapping[str, float],
    seed: int,
) -> str:
    """Write the report's table, figures and JSON, and return the table."""
    from instructedit.analysis.directions import SIDES
    from instructedit.analysis.report import as_markdown, draw, reliability_correlation, summary_of
    from instructedit.storage.writing import write_atomically

    summary = summary_of(rows)
    correlation = reliability_correlation(summary, reliability)
    counts = {each.task.name: len(each.records) for each in edits}
    page = as_markdown(summary, correlation, counts)
    write_atomically(folder / "directions.md", page.encode())
    for side in SIDES:
        draw(vectors, side, folder / f"directions-{side}.png", seed)
    result = {
        "edits": counts,
        "seed": seed,
        "summary": summary,
        "reliability": reliability,
        "predicts": correlation,
        "rows": rows,
    }
    emit_json(result, folder / "directions.json")
    return page


def _reliability(files: list[Path], test: str) -> dict[str, float]:
    """Return each editor's Reliability on a test, from results of `instructedit reproduce`.

    Raises:
        DataError: a file is not such a result.
    """
    reliability: dict[str, float] = {}
    for path in files:
        try:
            rows = read_json_file(path)["rows"]
            reliability |= {row["editor"]: row["metrics"]["reliability"]["mean"] for row in rows if row["test"] == test}
        except (KeyError, TypeError) as error:
            raise DataError(f"is not a result of `instructedit reproduce` ({error!r})", file=path) from None
    return reliability
