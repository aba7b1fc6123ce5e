"""``instructedit reproduce``: a table of many editors, from one file to JSON, a page and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from instructedit.cli.console import emit_json, err, out, progress, quiet_libraries
from instructedit.errors import DataError

FOLDER = Path("recipes/experiments")


def reproduce(
    name: Annotated[
        str,
        typer.Argument(
            help="table1, table3, fig2, fig3, paper, scope, sensitivity or larger, from recipes/experiments/; "
            "or a YAML file."
        ),
    ],
    out_folder: Annotated[Path | None, typer.Option("--out", help="Folder for everything; default runs/NAME.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder with the data sets; default INSTRUCTEDIT_DATA.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Only that many of the experiment's seeds.")] = None,
    edits: Annotated[int | None, typer.Option(min=1, help="Another number of test edits.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes at a time; they share the cores.")] = 1,
    report_only: Annotated[bool, typer.Option("--report-only", help="Write up what has been run so far.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the result as JSON, too.")] = False,
) -> None:
    """Train and test all editors of an experiment, and write `result.json`, `result.md` and `result.png`.

    Every score is kept as soon as it is there, and training goes on from its checkpoint: start the same command
    again after an interruption. The picture needs matplotlib (`pip install 'instructedit[plots]'`).
    """
    quiet_libraries()
    from instructedit.data import find_data
    from instructedit.experiments.plan import load_experiment
    from instructedit.experiments.report import as_markdown, draw, summarise
    from instructedit.experiments.run import run_all
    from instructedit.writing import write_atomically

    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.yaml"))) or "none here"
        raise DataError(f"there is no such experiment; known in {FOLDER}: {known}", file=path)
    experiment = load_experiment(path)
    changes = {"edits": edits, "seeds": experiment.seeds[:seeds] if seeds else None}
    experiment = experiment.model_copy(update={key: value for key, value in changes.items() if value is not None})
    folder = out_folder or Path("runs") / path.stem
    if not report_only:
        with progress() as bar:
            job = bar.add_task(path.stem, total=len(experiment.work()), note="")
            run_all(
                path, experiment, folder, data or find_data(), jobs, lambda what: bar.update(job, advance=1, note=what)
            )
    result = summarise(experiment, folder)
    if not result["rows"]:
        raise DataError("nothing has been run yet", file=folder)
    page = as_markdown(experiment, result)
    write_atomically(folder / "result.md", page.encode())
    emit_json(result, folder / "result.json")
    try:
        draw(experiment, result, folder / "result.png")
    except ImportError:
        err.print("no picture: matplotlib is not installed", highlight=False)
    if json_:
        emit_json(result)
    else:
        out.print(page, markup=False, highlight=False)
    err.print(f"written to {folder}", highlight=False)
