"""Result files of an experiment: one cell per editor, seed and evaluation, valid for the settings it was made with."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from instructedit.editors.saving import digest_of
from instructedit.errors import DataError
from instructedit.experiments.plan import Entry, EvaluationSpec, Experiment, slug, stages_of
from instructedit.instructions.templates import held_out_templates
from instructedit.storage.reading import as_mapping, read_json_file
from instructedit.tasks.loading import load_task

logger = logging.getLogger(__name__)


def cell_folder(out: Path, label: str, seed: int) -> Path:
    """Return the folder of one editor's cells."""
    return out / "cells" / f"{slug(label)}-{seed}"


def cell_file(out: Path, label: str, seed: int, test: EvaluationSpec) -> Path:
    """Return the file of one editor's scores on one evaluation."""
    return cell_folder(out, label, seed) / f"{slug(test.label)}.json"


def settings(experiment: Experiment, entry: Entry, seed: int, test: EvaluationSpec) -> str:
    """Return a digest of what decides a cell, so that a cell of other settings is not taken for it.

    The digest does not cover data files, base models and instruction templates: if they change, give a new --out.
    """
    if entry.pretrained is not None:
        editor: object = digest_of(entry.pretrained) or entry.pretrained  # by content, wherever the file is
    else:
        editor = [recipe.settings() for recipe in stages_of(entry, experiment.base, seed)]
    task = load_task(test.task)
    opposite = test.opposite or task.opposite
    content = {
        "editor": editor,
        "test": test.model_dump(mode="json"),
        "task": task.model_dump(mode="json"),
        "opposite": load_task(opposite).model_dump(mode="json") if opposite else None,
        "templates": held_out_templates(test.templates) if test.templates else None,
        "base": experiment.base,
        "edits": experiment.edits,
    }
    # Settings that came later are left out at their defaults, so that older cells stay valid.
    if experiment.dtype != "float32":
        content["dtype"] = experiment.dtype
    if experiment.by_knowledge:
        content["by_knowledge"] = True
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def kept_cell(path: Path, expected_settings: str) -> dict[str, Any] | None:
    """Return the scores in a cell's file; None if there are none, or damaged ones, or those of other settings."""
    if not path.is_file():
        return None
    try:
        cell = as_mapping(read_json_file(path), path)
    except DataError as error:
        logger.warning("%s; it is evaluated again", error)
        return None
    if cell.get("settings") != expected_settings:
        return None
    return cell if _is_cell(cell) else None


def _is_cell(cell: Mapping[str, Any]) -> bool:
    """Return whether scores have the fields that a report reads."""
    has_objects = all(isinstance(cell.get(name), dict) for name in ("records", "metrics"))
    return has_objects and {"base", "seed", "seconds_an_edit", "peak_bytes"} <= cell.keys()
