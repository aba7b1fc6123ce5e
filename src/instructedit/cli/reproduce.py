"""``instructedit reproduce``: train and evaluate the editors of an experiment, and write a report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from instructedit.cli.console import emit_json, err, out, progress, quiet_libraries
from instructedit.cli.options import DataFolder, JsonFile
from instructedit.cli.threads import requested_threads
from instructedit.errors import DataError

FOLDER = Path("recipes/experiments")
#: The experiments of a checkout, for commands that run in another folder; an installed package has none.
CHECKOUT = Path(__file__).parents[3] / FOLDER


def reproduce(
    name: Annotated[
        str,
        typer.Argument(
            help="Experiment: quality, table1, table3, fig2, fig3, paper, scope, sensitivity, seeds, larger, smollm2, "
            "smollm2-mlp or paper-smollm2 (recipes/experiments/), or a YAML file."
        ),
    ],
    out_folder: Annotated[Path | None, typer.Option("--out", help="Output folder. Default: runs/NAME.")] = None,
    data: DataFolder = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Use the first N seeds of the experiment.")] = None,
    edits: Annotated[
        int | None, typer.Option(min=1, help="Number of test edits. Default: that of the experiment.")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of parallel processes; they share the CPU cores. Default: 1; with --ray as many as fit.",
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Run the processes on this Ray cluster: auto, HOST:PORT or ray://HOST:PORT. Its nodes need the "
            "package and the same folders; each process takes --threads cores (1 by default).",
        ),
    ] = None,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Write the report of the finished runs, without starting others.")
    ] = False,
    json_: JsonFile = None,
) -> None:
    """Train and evaluate all editors of an experiment, and write `result.json`, `result.md` and `result.png`.

    Scores are stored as they are computed; run the command again to resume. The figure `result.png` needs matplotlib
    (`pip install 'instructedit[plots]'`).
    """
    quiet_libraries()
    from instructedit.data.locations import find_data
    from instructedit.experiments.cluster import Cluster
    from instructedit.experiments.plan import load_experiment, needed_files
    from instructedit.experiments.report import as_markdown, draw, summarise
    from instructedit.experiments.run import run_all
    from instructedit.storage.writing import make_folder, write_atomically

    path = _experiment_file(name)
    experiment = load_experiment(path)
    changes = {"edits": edits, "seeds": experiment.seeds[:seeds] if seeds else None}
    experiment = experiment.model_copy(update={key: value for key, value in changes.items() if value is not None})
    folder = out_folder or Path("runs") / path.stem
    if not report_only:
        make_folder(folder)
        data = data or find_data(needed_files(experiment))
        with progress() as bar:
            job = bar.add_task(path.stem, total=len(experiment.work()), note="")
            cluster = None if ray is None else Cluster(ray, requested_threads() or 1)
            run_all(path, experiment, folder, data, jobs, lambda what: bar.update(job, advance=1, note=what), cluster)
    result = summarise(experiment, folder)
    if not result["rows"]:
        raise DataError("has no finished runs; use the command without --report-only first", file=folder)
    page = as_markdown(experiment, result)
    write_atomically(folder / "result.md", page.encode())
    emit_json(result, folder / "result.json")
    try:
        draw(experiment, result, folder / "result.png")
    except ImportError:
        err.print("result.png is not written: matplotlib is missing (pip install 'instructedit[plots]')")
    if not emit_json(result, json_):
        out.print(page)
    err.print(f"written to {folder}")


def _experiment_file(name: str) -> Path:
    """Return the file of an experiment: a YAML file, or a name in the working folder's or checkout's experiments.

    Raises:
        DataError: There is none.
    """
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise DataError("there is no such file", file=name)
        return Path(name)
    folders = [folder for folder in (FOLDER, CHECKOUT) if folder.is_dir()]
    for folder in folders:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    if not folders:
        raise DataError(
            f"no experiment {name!r}: {FOLDER} is part of the repository, not of the installed package. Clone the "
            "repository and run the command in it, or give a YAML file"
        )
    known = ", ".join(sorted({file.stem for folder in folders for file in folder.glob("*.yaml")}))
    raise DataError(f"no experiment {name!r} in {folders[0]}. Known: {known}; or give a YAML file")
