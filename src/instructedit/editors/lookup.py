"""Finding an editor by what a user calls it: a name, a file of ``instructedit train``, or a YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from instructedit.artifacts import shipped_editors
from instructedit.editors.base import DirectEditor, Editor
from instructedit.editors.registry import editor_class, editor_names, unknown_editor
from instructedit.editors.saving import load_trained_editor
from instructedit.errors import EditorError, validation_messages
from instructedit.models.language_model import LanguageModel, check_language_model
from instructedit.storage.reading import read_yaml_file


def load_editor(name_or_path: str | Path, language_model: LanguageModel) -> Editor:
    """Return an editor for a base model.

    Args:
        name_or_path: the name of a shipped editor, an editor file, the name of a method that needs no training,
            or a YAML file with such a ``name`` and the fields that differ from the defaults.
        language_model: the base model.

    Raises:
        EditorError: there is no such editor, or its fields are wrong; all mistakes are listed.
        DataError: the YAML file cannot be read.
    """
    check_language_model(language_model)
    path, name = Path(name_or_path), str(name_or_path)
    if path.suffix in {".yaml", ".yml"}:
        fields = read_yaml_file(path)
        if not isinstance(fields, dict) or "name" not in fields:
            raise EditorError(f"file {path}: expected `name:` and the method's fields at the top level")
        name, others = str(fields["name"]), {key: value for key, value in fields.items() if key != "name"}
        return _create(name, others, language_model, f"file {path}: ")
    shipped = shipped_editors()
    if name not in shipped and name in editor_names():
        if issubclass(editor_class(name), DirectEditor):
            return _create(name, {}, language_model, "")
        if not path.is_file():
            raise EditorError(
                f"{name} has to be trained: give a file that `instructedit train` wrote, or a shipped editor: "
                f"{', '.join(shipped)}"
            )
    if name not in shipped and not path.suffix and not path.exists():
        raise EditorError(unknown_editor(name, {*shipped, *editor_names()}))
    return load_trained_editor(name_or_path, language_model)


def _create(name: str, fields: Mapping[str, Any], language_model: LanguageModel, where: str) -> Editor:
    """Return the editor of a method that needs no training.

    Args:
        name: of the method.
        fields: of its config, where they differ from the defaults.
        language_model: the base model.
        where: what messages begin with.

    Raises:
        EditorError: no such method, it has to be trained, or its fields are wrong.
    """
    if name not in editor_names():
        raise EditorError(where + unknown_editor(name, editor_names()))
    editor = editor_class(name)
    if not issubclass(editor, DirectEditor):
        raise EditorError(f"{where}{name} has to be trained: set it as `editor:` in a recipe of `instructedit train`")
    try:
        config = editor.Config.model_validate(fields)
    except ValidationError as error:
        raise EditorError(where + "; ".join(validation_messages(error))) from None
    return editor.create(config, language_model)
