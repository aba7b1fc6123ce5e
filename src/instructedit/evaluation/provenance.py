"""Provenance of a result: editor, base model and data file, and whether either was trained on the data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from instructedit.artifacts import CARD
from instructedit.data.locations import BUNDLED_PREFIX, data_file
from instructedit.editors.base import DirectEditor, Editor
from instructedit.editors.saving import digest_of, training_of
from instructedit.errors import DataError
from instructedit.models.language_model import BUNDLED, BUNDLED_FOLDER, LanguageModel
from instructedit.storage.reading import read_bytes, read_json_file


def provenance(
    name: str | Path, editor: Editor, language_model: LanguageModel, file: str | Path, data: Path = Path()
) -> dict[str, Any]:
    """Return the editor, base model and data file of a result, for its JSON.

    Args:
        name: the user's name for the editor: a shipped name, a method, or a file.
        editor: the loaded editor.
        language_model: its base model.
        file: of the edits, as a user names it.
        data: the folder that it is relative to.

    Returns:
        ``editor``, ``method``, ``editor_digest``, ``base``, ``base_source``, ``data``, ``data_sha256``, and ``met``:
        in words, whether the base model and the editor were trained on the file's edits, prompts or probes.

    Raises:
        DataError: the file cannot be read.
    """
    path = data_file(file, data)
    relative = str(file) if str(file).startswith(BUNDLED_PREFIX) else _relative(path)
    return {
        "editor": Path(name).name if Path(name).suffix else str(name),
        "method": editor.name,
        "editor_digest": digest_of(name),
        "base": language_model.fingerprint,
        "base_source": language_model.source,
        "data": relative,
        "data_sha256": hashlib.sha256(read_bytes(path)).hexdigest(),
        "met": {"base": _met_by_base(language_model, relative), "editor": _met_by_editor(name, editor, relative)},
    }


def _relative(path: Path) -> str:
    """Return a data file's folder and name, by which recipes and cards refer to it."""
    return Path(*path.parts[-2:]).as_posix()


def _met_by_base(language_model: LanguageModel, file: str) -> str:
    recipes = list(_recipes_of(language_model))
    if not recipes:
        return "unknown: the base model has no model card"
    if any(file in recipe.get("records", ()) for recipe in recipes):
        return "trained on the edit prompts, paraphrases and locality probes of this file with their true answers"
    if any(file in recipe.get("replies", ()) for recipe in recipes):
        return "trained on the replies of this file"
    if file.startswith(BUNDLED_PREFIX):
        return "trained on the facts that the edits and probes of this file are made from"
    return "not trained on this file"


def _recipes_of(language_model: LanguageModel) -> Iterator[dict[str, Any]]:
    folder = BUNDLED_FOLDER if language_model.source == BUNDLED else Path(language_model.source)
    try:
        card = read_json_file(folder / CARD)
    except DataError:
        return
    stages = card.get("stages") if isinstance(card, dict) else None
    for stage in stages if isinstance(stages, list) else ():
        if isinstance(stage, dict) and isinstance(stage.get("recipe"), dict):
            yield stage["recipe"]


def _met_by_editor(name: str | Path, editor: Editor, file: str) -> str:
    if isinstance(editor, DirectEditor):
        return "needs no training"
    recipe = training_of(name).get("recipe")
    if not isinstance(recipe, dict):
        return "unknown: the editor file does not contain its training recipe"
    tasks = [mix["task"] for mix in recipe.get("tasks", ()) if file in mix.get("files", ())]
    if tasks:
        return f"trained on this file, as {', '.join(tasks)}"
    return "not trained on this file"
