"""``instructedit build-base``: pretrain the bundled base model, or a similar one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from instructedit.cli.console import emit_json, err, out, progress
from instructedit.cli.options import DataFolder, JsonFile
from instructedit.cli.threads import prepare_computation


def build_base_command(
    recipe: Annotated[
        str, typer.Argument(help="Build recipe (YAML), or `bundled` for the recipe of the bundled model.")
    ],
    out_folder: Annotated[
        Path, typer.Option("--out", help="Output folder for the model, tokenizer, facts and model card.")
    ],
    data: DataFolder = None,
    json_: JsonFile = None,
) -> None:
    """Pretrain a small base model from scratch on real facts and measure its recall.

    The bundled model is built in five stages; the first takes about 45 minutes on two CPU cores. An interrupted build
    resumes after its last complete epoch.
    """
    prepare_computation()
    logging.getLogger("instructedit").setLevel(logging.WARNING)
    from instructedit.base_model.build import build_stages
    from instructedit.base_model.recipe import load_build_stages
    from instructedit.data.locations import data_folder
    from instructedit.storage.writing import make_folder

    stages = load_build_stages(recipe)
    make_folder(out_folder)
    with progress() as bar:
        job = bar.add_task("training", total=None, note="")
        card = build_stages(
            stages,
            data or data_folder(),
            out_folder,
            lambda step, steps, loss: bar.update(job, completed=step + 1, total=steps, note=f"loss {loss:.3f}"),
        )
    if emit_json(card, json_):
        return
    err.print(f"written to {out_folder}")
    for name, share in card["recall"].items():
        out.print(f"recall, {name.replace('_', ' ')}: {share:.1%} of {card['recall_sample']}")
