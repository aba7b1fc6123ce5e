"""``instructedit doctor``: what was found in a model, and whether an editor fits."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from instructedit.cli.console import emit_json, out, quiet_libraries, table
from instructedit.cli.options import Device, DeviceMap, Dtype, JsonFile, Model


def doctor(
    model: Model = "bundled",
    editor: Annotated[str | None, typer.Option(help="Check whether this editor file fits the model.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="Predict the memory of training this recipe.")] = None,
    edit_tokens: Annotated[int, typer.Option(min=2, help="Tokens of a typical edit, prompt and target.")] = 32,
    stay_tokens: Annotated[int, typer.Option(min=2, help="Tokens of a typical locality prompt with answer.")] = 20,
    dtype: Dtype = "float32",
    device: Device = None,
    device_map: DeviceMap = None,
    json_: JsonFile = None,
) -> None:
    """Show what was found in a model by structure, what would be edited, and how much memory that takes.

    With a recipe the memory of training it is predicted: weights and optimiser are counted, activations weighed in two
    small steps and carried on to the recipe's batch.

    A model that cannot be edited gets a message that says what was found instead, and exit code 2.
    """
    quiet_libraries()
    from instructedit.editors.footprint import footprint
    from instructedit.editors.gradient import EditorConfig, chosen_matrices
    from instructedit.editors.saving import load_editor
    from instructedit.models.language_model import load_language_model
    from instructedit.training.memory import TextLengths, predict_memory
    from instructedit.training.recipe_file import load_stages

    planned = load_stages(recipe)[0] if recipe is not None else None
    config = planned.editor if planned is not None else EditorConfig()
    language_model = load_language_model(model, dtype=dtype, device=device, device_map=device_map)
    loaded = load_editor(editor, language_model) if editor is not None else None
    if loaded is not None:
        config = loaded.config
    structure = language_model.structure
    matrices = chosen_matrices(language_model, config)
    size = footprint(language_model, matrices, config)
    found: dict[str, Any] = {
        "model": model,
        "fingerprint": language_model.fingerprint,
        "parameters": sum(p.numel() for p in language_model.model.parameters()),
        "blocks": len(structure.blocks),
        "hidden": structure.hidden,
        "first_block": structure.blocks[0],
        "final_norm": structure.final_norm,
        "head": structure.head,
        "edited": [{"name": m.name, "inputs": m.inputs, "outputs": m.outputs} for m in matrices],
        "editor_fits": loaded is not None or None,
        "megabytes": {
            "base": round(size.base / 1e6, 1),
            "editor": round(size.editor / 1e6, 1),
            "training": round((size.base + size.training) / 1e6, 1),
            "activations": None,
        },
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("instructedit", "torch", "transformers")},
        },
    }
    if planned is not None:
        target = max(1, edit_tokens // 8)
        memory = predict_memory(language_model, planned, TextLengths(edit_tokens, target, stay_tokens))
        found["megabytes"] |= {
            "training": round(memory.total / 1e6, 1),
            "activations": round(memory.activations / 1e6, 1),
        }
    if json_ is not None:
        emit_json(found, json_)
        if str(json_) == "-":
            return
    rows = table(title=f"{model} ({found['fingerprint']})", show_header=False)
    rows.add_row("parameters", f"{found['parameters']:,}")
    rows.add_row("blocks", f"{found['blocks']} × width {structure.hidden}, from {structure.blocks[0]}")
    rows.add_row("final norm, head", f"{structure.final_norm or 'none'}, {structure.head}")
    rows.add_row("edited", "\n".join(f"{m.name}  {m.inputs} -> {m.outputs}" for m in matrices))
    rows.add_row("base in memory", f"{found['megabytes']['base']} MB")
    rows.add_row("editor", f"{found['megabytes']['editor']} MB (rank {config.rank}, {config.layers} layers)")
    if planned is None:
        rows.add_row("training, without activations", f"{found['megabytes']['training']} MB")
    else:
        name = f"training at batch {planned.optimisation.batch}"
        activations = found["megabytes"]["activations"]
        rows.add_row(name, f"{found['megabytes']['training']} MB, of which activations {activations} MB")
    if loaded is not None:
        rows.add_row("editor file", f"{editor} fits this model ({loaded.name})")
    out.print(rows)
