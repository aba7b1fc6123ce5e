"""A Hugging Face checkpoint with a delta merged into its weights, which every program loads that loads the base."""

from __future__ import annotations

import shutil
import uuid
from copy import deepcopy
from pathlib import Path

from instructedit.deltas.delta import Delta
from instructedit.errors import DataError
from instructedit.export.card import card
from instructedit.models.language_model import LanguageModel
from instructedit.storage.writing import make_folder, write_atomically


def export_merged(delta: Delta, language_model: LanguageModel, folder: Path, *, base_name: str) -> None:
    """Write the edited model, its tokenizer and a model card; the model in memory stays as it is.

    The weights are written in the data type in which the base model is loaded. In bfloat16 the smaller part of a small
    change is rounded away; load the base model in float32 to keep it.

    Args:
        delta: the edit.
        language_model: its base model.
        folder: is created; it must not exist, or be empty.
        base_name: the base model's name, for the card.

    Raises:
        DeltaError: the delta does not belong to the model.
        DataError: the folder is not empty or cannot be written.
    """
    delta.check(language_model)
    if folder.exists() and any(folder.iterdir()):
        raise DataError("is not empty; choose another folder", file=folder)
    merged = deepcopy(language_model)
    delta.merge_into(merged)
    temporary = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
    try:
        make_folder(temporary)
        merged.model.save_pretrained(temporary)
        merged.tokenizer.save_pretrained(temporary)
        write_atomically(temporary / "README.md", card(delta, base_name, "a merged checkpoint", None, None).encode())
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror or error}", file=folder) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
