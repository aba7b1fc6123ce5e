"""``instructedit train``: meta-train an editor from a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from instructedit.cli.console import emit_json, err, out, progress, quiet_libraries
from instructedit.cli.hub import offline_if_unreachable
from instructedit.cli.options import Device, DeviceMap, JsonFile, known_model


def train_command(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe; see recipes/.")],
    out_folder: Annotated[
        Path | None, typer.Option("--out", help="Folder for log, checkpoint and editor; default runs/RECIPE.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder with the data sets; default INSTRUCTEDIT_DATA.")] = None,
    base: Annotated[
        str | None, typer.Option(callback=known_model, help="Train for this model instead of the recipe's.")
    ] = None,
    device: Device = None,
    device_map: DeviceMap = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Stop the schedule after this many steps instead.")] = None,
    seed: Annotated[int | None, typer.Option(help="Another seed than the recipe's.")] = None,
    json_: JsonFile = None,
) -> None:
    """Meta-train an editor. A run that was stopped goes on from its checkpoint when started again.

    The folder gets `log.jsonl` (a line a step), `checkpoint.safetensors` and `editor.safetensors`, the editor of
    the best validation loss. Several processes share the work: `accelerate launch -m instructedit.cli.app train …`
    (docs/scale.md).
    """
    quiet_libraries()
    from instructedit.models.allocator import keep_freed_memory
    from instructedit.models.language_model import load_language_model
    from instructedit.storage.writing import make_folder
    from instructedit.training.loop import EDITOR, LOG, Report, train
    from instructedit.training.recipe import load_recipe

    keep_freed_memory()
    found = load_recipe(recipe)
    changes = {"base": base, "seed": seed}
    found = found.model_copy(update={key: value for key, value in changes.items() if value is not None})
    if steps is not None:
        found = found.model_copy(update={"optimisation": found.optimisation.model_copy(update={"steps": steps})})
    folder = make_folder(out_folder or Path("runs") / recipe.stem)
    offline_if_unreachable(found.base)
    language_model = load_language_model(found.base, dtype=found.dtype, device=device, device_map=device_map)
    with progress() as bar:
        jobs: dict[str, int] = {}
        note = ""

        def show(report: Report) -> None:
            nonlocal note
            if report.phase == "validation":
                note = f"validation {report.values['loss']:.4f}"
                return
            if report.phase not in jobs:
                jobs[report.phase] = bar.add_task(report.phase, total=report.steps, note="")
            values = " ".join(
                f"{key} {report.values[key]:.3f}" for key in ("loss", "edit", "locality") if key in report.values
            )
            bar.update(jobs[report.phase], completed=report.step, note=f"{values} {note}")

        train(found, language_model, folder, data, show)
    summary = {"editor": str(folder / EDITOR), "log": str(folder / LOG), "base": language_model.fingerprint}
    if json_ is not None:
        emit_json(summary, json_)
        if str(json_) == "-":
            return
    err.print("trained")
    out.print(f"editor: {summary['editor']}\nlog:    {summary['log']}")
