"""Trained editors on disk: one safetensors file with its config in the header."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from instructedit.artifacts import shipped_editors, weights_file
from instructedit.editors.gradient import GradientEditor, GradientEditorConfig, create_editor, editor_config
from instructedit.errors import DataError, EditorError, validation_messages
from instructedit.models.finite import finite
from instructedit.models.language_model import LanguageModel
from instructedit.models.near import fits
from instructedit.storage.reading import parse_json, read_bytes
from instructedit.storage.tensors import TENSORS_DIGEST, pack, unpack
from instructedit.storage.writing import write_atomically

FORMAT = "instructedit-editor/2"


def save_editor(
    editor: GradientEditor,
    language_model: LanguageModel,
    path: str | Path,
    *,
    training: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write an editor; a failure leaves no half-written file.

    Args:
        editor: the editor.
        language_model: its base model, whose fingerprint goes into the header.
        path: of the file.
        training: what made it (recipe, steps, seed), kept in the header for people.
        dtype: of the stored weights; running statistics are always stored in full.
    """
    buffers = {name for name, _ in editor.named_buffers()}
    tensors = {name: tensor if name in buffers else tensor.to(dtype) for name, tensor in editor.state_dict().items()}
    header = {
        "format": FORMAT,
        "config": editor.config.model_dump_json(),
        "base": language_model.fingerprint,
        "architecture": language_model.architecture,
        "sketch": language_model.sketch,
        "source": language_model.source,
        "training": json.dumps(training or {}),
        "usual_norms": json.dumps(editor.usual_norms),
    }
    write_atomically(path, pack(tensors, header))


def digest_of(name_or_path: str | Path) -> str | None:
    """Return the SHA-256 of an editor's tensors, or of a direct method's YAML file; None for a method's name."""
    file = weights_file(name_or_path)
    if not file.is_file():
        return None
    return _header_of(file).get(TENSORS_DIGEST) or hashlib.sha256(read_bytes(file)).hexdigest()


def base_fingerprint_of(path: str | Path) -> str:
    """Return the fingerprint of the base model that an editor was trained for; empty where there is no editor file."""
    return _header_of(weights_file(path)).get("base", "")


def training_of(path: str | Path) -> dict[str, Any]:
    """Return what made an editor, as its file says: recipe and step; empty where there is no editor file."""
    try:
        training = parse_json(_header_of(weights_file(path)).get("training", "{}"))
    except DataError:
        return {}
    return training if isinstance(training, dict) else {}


def _header_of(file: Path) -> dict[str, str]:
    """Return the header of an editor file; empty for any other file."""
    try:
        with safe_open(str(file), framework="pt") as stored:
            header = dict(stored.metadata() or {})
    except (OSError, SafetensorError, ValueError):
        return {}
    return header if header.get("format") == FORMAT else {}


def _usual_norms(header: Mapping[str, str]) -> tuple[float, float] | None:
    """Return :attr:`GradientEditor.usual_norms`; None where the header has none."""
    try:
        low, high = (float(value) for value in parse_json(header.get("usual_norms", "null")))
    except (DataError, TypeError, ValueError):
        return None
    return (low, high) if 0 < low <= high else None


def _config_of(header: Mapping[str, str], path: str | Path) -> GradientEditorConfig:
    """Return the config in the header of an editor file.

    Raises:
        EditorError: there is none, it is damaged, or no method has its name.
    """
    try:
        return editor_config(parse_json(header["config"]))
    except KeyError:
        problem = "there is none"
    except ValidationError as error:
        problem = "; ".join(validation_messages(error))
    except (DataError, EditorError) as error:
        problem = str(error)
    raise EditorError(f"file {path}: its header contains no editor config: {problem}")


def load_trained_editor(path: str | Path, language_model: LanguageModel, *, to_train: bool = False) -> GradientEditor:
    """Read a trained editor for its base model.

    Args:
        path: of the file, or the name of a shipped editor.
        language_model: the base model.
        to_train: in float32 whatever the base model is in; else the hypernetwork of an editor of a model in
            bfloat16 computes in bfloat16, too.

    Raises:
        EditorError: no such file, damaged, not an editor, or trained for another base model. The same model in another
            precision is accepted with a warning.
    """
    file = weights_file(path)
    if not file.is_file():
        raise EditorError(f"file {path}: no such file; the shipped editors are {', '.join(shipped_editors())}")
    header, tensors = unpack(file, FORMAT, "an editor", EditorError)
    base = header.get("base", "")
    architecture, sketch = header.get("architecture", ""), header.get("sketch", "")
    if not fits(language_model, f"the editor {path}", base, architecture, sketch):
        raise EditorError(
            f"file {path}: this editor was trained for the base model {base} ({header.get('source')}), "
            f"not for {language_model.fingerprint} ({language_model.source}). Use that model, train an editor for this "
            "one with `instructedit train`, or take a method that needs no training, for example `--editor ft`"
        )
    editor = create_editor(_config_of(header, path), language_model)
    try:
        editor.load_state_dict({name: t.float() if t.dtype is torch.bfloat16 else t for name, t in tensors.items()})
    except RuntimeError as error:
        raise EditorError(f"file {path}: its tensors are damaged: {str(error).splitlines()[0]}") from None
    editor.usual_norms = _usual_norms(header)
    broken = next((name for name, tensor in tensors.items() if not finite(tensor)), None)
    if broken is not None:
        raise EditorError(f"file {path}: {broken} contains NaN or infinity; train the editor again")
    if language_model.model.dtype is torch.bfloat16 and not to_train:
        editor.round_in_place(torch.bfloat16)
    return editor.to(language_model.device).eval()
