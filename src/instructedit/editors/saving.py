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

from instructedit.artifacts import EDITOR_WEIGHTS, shipped_editors
from instructedit.editors.base import DirectEditor, Editor, editor_class, registered_editors
from instructedit.editors.calinet import CaliNet
from instructedit.editors.finetuning import BoxedFineTuning, Lora
from instructedit.editors.grace import Grace
from instructedit.editors.gradient import EditorConfig, GradientEditor
from instructedit.editors.incontext import InContext
from instructedit.editors.instructedit import InstructEdit
from instructedit.editors.knowledge_editor import KnowledgeEditor
from instructedit.editors.memit import Memit
from instructedit.editors.mend import Mend
from instructedit.editors.rome import Rome
from instructedit.errors import DataError, EditorError, validation_messages
from instructedit.models.finite import finite
from instructedit.models.language_model import BUNDLED, LanguageModel
from instructedit.storage.reading import parse_json, read_bytes, read_yaml_file
from instructedit.storage.tensors import TENSORS_DIGEST, pack, unpack
from instructedit.storage.writing import write_atomically

#: Importing them is what makes them known by name.
TRAINED = (InstructEdit, KnowledgeEditor, Mend)
DIRECT = (BoxedFineTuning, CaliNet, Grace, InContext, Lora, Memit, Rome)
FORMAT = "instructedit-editor/2"
#: Fewer scopes and steps than the bundled editor; and multi-task MEND on the same mixture and for as many steps.
BUNDLED_CORE = "bundled-core"
BUNDLED_MEND = "bundled-mend"
#: Files of the shipped editors by name.
SHIPPED = {name: folder / EDITOR_WEIGHTS for name, folder in shipped_editors().items()}
BUNDLED_EDITOR = SHIPPED[BUNDLED]


def create_editor(config: EditorConfig, language_model: LanguageModel) -> GradientEditor:
    """An untrained editor of the kind that the config names."""
    kind = editor_class(config.name)
    assert issubclass(kind, GradientEditor)
    return kind.create(config, language_model).eval()


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
        training: what made it (recipe, steps, seed), kept in the header for people.
        dtype: of the stored weights; running statistics are always stored in full.
    """
    buffers = {name for name, _ in editor.named_buffers()}
    tensors = {name: tensor if name in buffers else tensor.to(dtype) for name, tensor in editor.state_dict().items()}
    header = {
        "format": FORMAT,
        "config": editor.config.model_dump_json(),
        "base": language_model.fingerprint,
        "source": language_model.source,
        "training": json.dumps(training or {}),
        "usual_norms": json.dumps(editor.usual_norms),
    }
    write_atomically(path, pack(tensors, header))


def find_editor(name_or_path: str | Path, language_model: LanguageModel) -> Editor:
    """An editor by what a user calls it.

    A name in :data:`SHIPPED`, an editor file, a direct method's name, or a YAML file that says ``name: ft`` and the
    numbers that differ from the method's own.

    Raises:
        EditorError: there is no such editor, or its numbers are wrong; all mistakes are listed.
    """
    raw: dict[str, Any] = {"name": str(name_or_path)}
    if Path(name_or_path).suffix in {".yaml", ".yml"}:
        raw = read_yaml_file(Path(name_or_path))
        if not isinstance(raw, dict):
            raise EditorError(f"file {name_or_path}: expected `name:` and numbers at the top level")
    kind = registered_editors().get(str(raw.pop("name", "")))
    if kind is None or not issubclass(kind, DirectEditor):
        return load_editor(name_or_path, language_model)
    try:
        return kind.create(kind.Config.model_validate(raw), language_model)
    except ValidationError as error:
        mistakes = "; ".join(validation_messages(error))
        raise EditorError(f"{name_or_path}: {mistakes}") from None


def digest_of(name_or_path: str | Path) -> str | None:
    """SHA-256 of an editor's tensors, or of a direct method's file; None for what is only a name."""
    file = SHIPPED.get(str(name_or_path), Path(name_or_path))
    if not file.is_file():
        return None
    return _header_of(file).get(TENSORS_DIGEST) or hashlib.sha256(read_bytes(file)).hexdigest()


def training_of(path: str | Path) -> dict[str, Any]:
    """What made an editor, as its file says: recipe and step; empty for what is no editor file."""
    try:
        training = parse_json(_header_of(SHIPPED.get(str(path), Path(path))).get("training", "{}"))
    except DataError:
        return {}
    return training if isinstance(training, dict) else {}


def _header_of(file: Path) -> dict[str, str]:
    """The header of an editor file; empty for any other file."""
    try:
        with safe_open(str(file), framework="pt") as stored:
            header = dict(stored.metadata() or {})
    except (OSError, SafetensorError, ValueError):
        return {}
    return header if header.get("format") == FORMAT else {}


def _usual_norms(header: Mapping[str, str]) -> tuple[float, float] | None:
    """See :class:`GradientEditor`; None where the header has none."""
    try:
        low, high = (float(value) for value in parse_json(header.get("usual_norms", "null")))
    except (DataError, TypeError, ValueError):
        return None
    return (low, high) if 0 < low <= high else None


def load_editor(path: str | Path, language_model: LanguageModel, *, to_train: bool = False) -> GradientEditor:
    """Read an editor for its base model; those of :data:`SHIPPED` are for the bundled one.

    Args:
        to_train: in float32 whatever the base model is in; else the hypernetwork of an editor of a model in
            bfloat16 computes in bfloat16, too.

    Raises:
        EditorError: no such file, damaged, not an editor, or trained for another base model.
    """
    file = SHIPPED.get(str(path), Path(path))
    if not file.is_file():
        known = ", ".join(sorted(SHIPPED.keys() | registered_editors().keys()))
        raise EditorError(f"file {path}: there is no such editor; names that are known: {known}")
    header, tensors = unpack(file, FORMAT, "an editor", EditorError)
    if header.get("base") != language_model.fingerprint:
        raise EditorError(
            f"file {path}: this editor was trained for the base model {header.get('base')} ({header.get('source')}), "
            f"not for {language_model.fingerprint} ({language_model.source}); train one with `instructedit train`"
        )
    try:
        editor = create_editor(EditorConfig.model_validate(parse_json(header["config"])), language_model)
        editor.load_state_dict({name: t.float() if t.dtype is torch.bfloat16 else t for name, t in tensors.items()})
    except (KeyError, RuntimeError, ValidationError, DataError) as error:
        raise EditorError(f"file {path}: its header or tensors are damaged: {str(error).splitlines()[0]}") from None
    editor.usual_norms = _usual_norms(header)
    broken = next((name for name, tensor in tensors.items() if not finite(tensor)), None)
    if broken is not None:
        raise EditorError(f"file {path}: {broken} holds NaN or infinity; train the editor anew")
    if language_model.model.dtype is torch.bfloat16 and not to_train:
        editor.round_in_place(torch.bfloat16)
    return editor.to(language_model.device).eval()
