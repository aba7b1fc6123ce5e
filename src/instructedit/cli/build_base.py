"""``instructedit build-base``: make the bundled base model, or one like it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from instructedit.cli.console import emit_json, err, out, progress, quiet_libraries
from instructedit.cli.options import JsonFile


def build_base_command(
    recipe: Annotated[str, typer.Argument(help="A YAML build recipe, or `bundled` for that of the bundled model.")],
    out_folder: Annotated[Path, typer.Option("--out", help="Folder for the model, tokenizer, facts and card.")],
    data: Annotated[Path | None, typer.Option(help="Folder with the data sets; default INSTRUCTEDIT_DATA.")] = None,
    json_: JsonFile = None,
) -> None:
    """Pretrain a small base model from scratch on real facts and measure its recall.

    The bundled model is built in five stages; the first takes about 45 minutes on two CPU cores. A build that was
    stopped resumes after its last epoch.
    """
    quiet_libraries()
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
    if json_ is not None:
        emit_json(card, json_)
        if str(json_) == "-":
            return
    err.print(f"written to {out_folder}")
    for name, share in card["recall"].items():
        out.print(f"recall, {name.replace('_', ' ')}: {share:.1%} of {card['recall_sample']}")
