"""``instructedit train``: meta-train an editor with a recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instructedit.cli.console import Progress, emit_json, err, out, progress
from instructedit.cli.hub import offline_if_unreachable
from instructedit.cli.options import DataFolder, Device, DeviceMap, JsonFile, known_model
from instructedit.cli.threads import prepare_computation

if TYPE_CHECKING:
    from instructedit.training.progress import Report
    from instructedit.training.recipe import Recipe


def train_command(
    recipe: Annotated[
        str, typer.Argument(help="Training recipe (YAML), or the name of a shipped editor to train with its recipe.")
    ],
    out_folder: Annotated[
        Path | None, typer.Option("--out", help="Output folder for log, checkpoint and editor. Default: runs/RECIPE.")
    ] = None,
    data: DataFolder = None,
    base: Annotated[
        str | None, typer.Option(callback=known_model, help="Base model. Default: that of the recipe.")
    ] = None,
    device: Device = None,
    device_map: DeviceMap = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Number of steps of every stage. Default: that of the recipe.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed. Default: that of the recipe.")] = None,
    json_: JsonFile = None,
) -> None:
    """Meta-train an editor. Run the command again to resume an interrupted run from its checkpoint.

    The output folder contains `log.jsonl` (one line per step) and `editor.safetensors` (the editor with the best
    validation loss in the last stage). With several stages, each has a subfolder `stage-N` with its log, editor and
    `checkpoint.safetensors`. To train with several processes, use
    `accelerate launch -m instructedit.cli.app train …` (docs/training.md).
    """
    prepare_computation()
    from instructedit.models.allocator import keep_freed_memory
    from instructedit.models.language_model import load_language_model
    from instructedit.storage.writing import make_folder
    from instructedit.training.log import LOG
    from instructedit.training.loop import EDITOR
    from instructedit.training.recipe_file import load_stages
    from instructedit.training.stages import train_stages

    keep_freed_memory()
    stages = [_with_options(stage, base, seed, steps) for stage in load_stages(recipe)]
    folder = make_folder(out_folder or Path("runs") / Path(recipe).stem)
    offline_if_unreachable(stages[0].base)
    language_model = load_language_model(stages[0].base, dtype=stages[0].dtype, device=device, device_map=device_map)
    with progress() as bar:
        train_stages(stages, language_model, folder, data, _display(bar))
    summary = {"editor": str(folder / EDITOR), "log": str(folder / LOG), "base": language_model.fingerprint}
    if emit_json(summary, json_):
        return
    err.print("training finished")
    out.print(f"editor: {summary['editor']}\nlog:    {summary['log']}")


def _with_options(stage: Recipe, base: str | None, seed: int | None, steps: int | None) -> Recipe:
    """Return a stage's settings with what the command line overrides."""
    overrides: dict[str, Any] = {"base": base, "seed": seed}
    if steps is not None:
        overrides["optimisation"] = stage.optimisation.model_copy(update={"steps": steps})
    return stage.model_copy(update={key: value for key, value in overrides.items() if value is not None})


def _display(bar: Progress) -> Callable[[Report], None]:
    """Return a function that shows reports as one progress bar per phase; a stage starts new ones."""
    jobs: dict[str, tuple[int, int]] = {}  # by phase: its bar, and the last step shown
    note = ""

    def show(report: Report) -> None:
        nonlocal note
        if report.phase == "validation":
            note = f"validation {report.values['loss']:.4f}"
            return
        job, last_step = jobs.get(report.phase, (None, 0))
        if job is None or report.step < last_step:
            job = bar.add_task(report.phase, total=report.steps, note="")
        jobs[report.phase] = (job, report.step)
        values = " ".join(
            f"{key} {report.values[key]:.3f}" for key in ("loss", "edit", "locality") if key in report.values
        )
        bar.update(job, completed=report.step, note=f"{values} {note}")

    return show
