"""``instructedit convert``: an editor that another program trained, as an editor file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from instructedit.cli.console import emit_json, out
from instructedit.cli.options import Device, Dtype, JsonFile, Model, writable
from instructedit.cli.threads import prepare_computation

Checkpoint = Annotated[Path, typer.Argument(help="What the training with EasyEdit, or with MEND's own code, wrote.")]
Config = Annotated[
    Path,
    typer.Option(help="The YAML file that the training was configured with. It has the order of the edited matrices."),
]
Out = Annotated[Path, typer.Option("--out", callback=writable, help="Write the editor to this safetensors file.")]


def convert(
    checkpoint: Checkpoint,
    config: Config,
    out_file: Out,
    model: Model = "bundled",
    dtype: Dtype = "float32",
    device: Device = None,
    json_: JsonFile = None,
) -> None:
    """Convert a MEND checkpoint of EasyEdit into an editor file, whose edits are the same.

    `instructedit convert results/models/MEND/gpt2-xl --config hparams/TRAINING/MEND/gpt2-xl.yaml --model gpt2-xl --out
    mend.safetensors`, and then `instructedit edit --editor mend.safetensors --model gpt2-xl …`. The checkpoint is read
    without running code that it may contain. --model is the model that it was trained for.
    """
    prepare_computation()
    from instructedit.editors.easyedit import convert_easyedit
    from instructedit.editors.saving import save_editor
    from instructedit.models.language_model import load_language_model

    language_model = load_language_model(model, dtype=dtype, device=device)
    editor = convert_easyedit(checkpoint, config, language_model)
    save_editor(editor, language_model, out_file, training={"converted_from": checkpoint.name})
    result = {"out": str(out_file), "matrices": [matrix.name for matrix in editor.matrices], "rank": editor.config.rank}
    if not emit_json(result, json_):
        out.print(f"an editor of {len(editor.matrices)} matrices was written to {out_file}")
