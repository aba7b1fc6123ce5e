"""``instructedit doctor``: inspect a model, and predict the memory of editing and training it."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instructedit.cli.console import emit_json, out, table
from instructedit.cli.options import Device, DeviceMap, Dtype, JsonFile, Model
from instructedit.cli.threads import prepare_computation

if TYPE_CHECKING:
    from instructedit.editors.footprint import Footprint
    from instructedit.models.language_model import LanguageModel
    from instructedit.models.structure import Matrix

Editor = Annotated[
    str | None, typer.Option(help="Check that this editor fits the model: a file, or the name of a shipped editor.")
]
RecipeFile = Annotated[
    Path | None, typer.Option(help="Predict the memory of training with this recipe (YAML), activations included.")
]
EditTokens = Annotated[
    int, typer.Option(min=2, help="Length of a typical edit for --recipe, prompt and target, in tokens.")
]
LocalityTokens = Annotated[
    int, typer.Option(min=2, help="Length of a typical locality prompt with its answer for --recipe, in tokens.")
]


def doctor(
    model: Model = "bundled",
    editor: Editor = None,
    recipe: RecipeFile = None,
    edit_tokens: EditTokens = 32,
    locality_tokens: LocalityTokens = 20,
    dtype: Dtype = "float32",
    device: Device = None,
    device_map: DeviceMap = None,
    json_: JsonFile = None,
) -> None:
    """Check that a model can be edited; show which matrices are edited and how much memory it takes.

    Blocks and MLPs are detected from the model's structure. With --recipe the memory of training is predicted: weights
    and optimizer states are counted, activations are measured in two small steps and extrapolated to the batch size.

    If the model is not supported, a message says why, and the exit code is 2.
    """
    prepare_computation()
    from instructedit.editors.footprint import footprint
    from instructedit.editors.gradient import chosen_matrices, editor_config
    from instructedit.editors.saving import load_trained_editor
    from instructedit.models.language_model import load_language_model
    from instructedit.training.memory import TextLengths, predict_memory
    from instructedit.training.recipe_file import load_stages

    loaded_recipe = load_stages(recipe)[0] if recipe is not None else None
    config = loaded_recipe.editor if loaded_recipe is not None else editor_config({})
    language_model = load_language_model(model, dtype=dtype, device=device, device_map=device_map)
    loaded_editor = load_trained_editor(editor, language_model) if editor is not None else None
    if loaded_editor is not None:
        config = loaded_editor.config
    matrices = chosen_matrices(language_model, config)
    size = footprint(config, language_model)
    result = _describe(model, language_model, matrices, size)
    result["editor_fits"] = loaded_editor is not None or None  # null without --editor
    if loaded_recipe is not None:
        target_tokens = max(1, edit_tokens // 8)
        memory = predict_memory(language_model, loaded_recipe, TextLengths(edit_tokens, target_tokens, locality_tokens))
        result["megabytes"] |= {
            "training": round(memory.total / 1e6, 1),
            "activations": round(memory.activations / 1e6, 1),
        }
    if emit_json(result, json_):
        return
    batch = loaded_recipe.optimisation.batch if loaded_recipe is not None else None
    fits = f"{editor} fits this model ({loaded_editor.name})" if loaded_editor is not None else None
    _print_table(result, config.name, batch, fits)


def _describe(model: str, language_model: LanguageModel, matrices: Sequence[Matrix], size: Footprint) -> dict[str, Any]:
    """Return the command's JSON result, without the prediction for a recipe."""
    structure = language_model.structure
    return {
        "model": model,
        "fingerprint": language_model.fingerprint,
        "parameters": sum(p.numel() for p in language_model.model.parameters()),
        "blocks": len(structure.blocks),
        "hidden": structure.hidden,
        "first_block": structure.blocks[0],
        "final_norm": structure.final_norm,
        "head": structure.head,
        "edited": [{"name": m.name, "inputs": m.inputs, "outputs": m.outputs} for m in matrices],
        "editor_fits": None,
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


def _print_table(result: dict[str, Any], editor_size: str, batch: int | None, fits: str | None) -> None:
    """Print the result.

    Args:
        result: the command's JSON result.
        editor_size: rank and layers of the editor.
        batch: batch size of the recipe, if there is one.
        fits: statement that the editor file fits the model, if there is one.
    """
    megabytes = result["megabytes"]
    rows = table(title=f"{result['model']} ({result['fingerprint']})", show_header=False)
    rows.add_row("parameters", f"{result['parameters']:,}")
    rows.add_row("blocks", f"{result['blocks']} × width {result['hidden']}, from {result['first_block']}")
    rows.add_row("final norm, head", f"{result['final_norm'] or 'none'}, {result['head']}")
    rows.add_row("edited", "\n".join(f"{m['name']}  {m['inputs']} -> {m['outputs']}" for m in result["edited"]))
    rows.add_row("base in memory", f"{megabytes['base']} MB")
    rows.add_row("editor", f"{megabytes['editor']} MB ({editor_size})")
    if batch is None:
        rows.add_row("training, without activations", f"{megabytes['training']} MB")
    else:
        memory = f"{megabytes['training']} MB, of which activations {megabytes['activations']} MB"
        rows.add_row(f"training at batch {batch}", memory)
    if fits is not None:
        rows.add_row("editor file", fits)
    out.print(rows)
