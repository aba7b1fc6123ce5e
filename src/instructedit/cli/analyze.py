"""``instructedit analyze``: what an instruction changes inside an editor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instructedit.cli.console import emit_json, err, out, progress, quiet_libraries
from instructedit.cli.options import Device, Dtype, Model
from instructedit.errors import DataError, EditorError
from instructedit.storage.reading import read_json_file

if TYPE_CHECKING:
    from instructedit.analysis.report import Directions, TaskEdits

app = typer.Typer(
    help="Measure what an instruction changes inside an editor.", no_args_is_help=True, rich_markup_mode="markdown"
)


@app.callback()
def analyze() -> None:
    """Measure what an instruction changes inside an editor."""


@app.command("directions")
def directions_command(
    editor: Annotated[
        list[str],
        typer.Option(help="label=file, repeatable; label=task:file,task:file sets single-task editors side by side."),
    ],
    out_folder: Annotated[Path, typer.Option("--out", help="Folder for directions.json, .md and a figure per side.")],
    task: Annotated[
        list[str] | None,
        typer.Option(help="Whose edits; repeatable. Default: the tasks that requests without a task are routed to."),
    ] = None,
    limit: Annotated[int, typer.Option(min=10, help="Test edits per task.")] = 100,
    results: Annotated[
        list[Path] | None,
        typer.Option(help="result.json of `reproduce`: relate separability to its editors' Reliability; repeatable."),
    ] = None,
    held_out: Annotated[str, typer.Option(help="The test in those results that counts.")] = "zsre",
    model: Model = "bundled",
    dtype: Dtype = "float32",
    device: Device = None,
    seed: Annotated[int, typer.Option(help="Seed of the drawn edits and the projections.")] = 0,
) -> None:
    """Compare the editing directions of several editors: do tasks separate, and does the instruction change them?

    For every edited matrix and both sides of the pseudo-gradient: silhouette, a linear probe and the angles between
    tasks, the share of the variance that the instruction explains when the same edits get every task's instruction,
    and a figure (PCA and t-SNE). An editor that does not read its instruction has a share of zero.
    """
    quiet_libraries()
    try:
        from instructedit.analysis.report import LabelledEditor, TaskEdits, analyse
    except ImportError as error:
        raise EditorError(
            f"the analysis needs more packages ({error.name}): pip install 'instructedit[analysis]'"
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
        raise DataError("directions are compared between tasks; give two with --task")
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
    """Return each editor's Reliability on a test, from results of `reproduce`.

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
