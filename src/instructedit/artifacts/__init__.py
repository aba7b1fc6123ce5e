"""Shipped artefacts: one folder per base model or editor, with weights, recipe, card and training log.

    models/<name>/     config.json, model.safetensors, tokenizer, recipe.yaml, card.json, log.jsonl
    editors/<name>/    editor.safetensors, recipe.yaml, card.json, log.jsonl.gz, and for some demo.yaml

The folder's name is the artefact's name everywhere: in commands, recipes, results and documentation.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

ARTIFACTS = Path(__file__).parent
MODEL_WEIGHTS = "model.safetensors"
EDITOR_WEIGHTS = "editor.safetensors"
RECIPE = "recipe.yaml"
CARD = "card.json"
LOG = "log.jsonl"
#: The training log of an editor is compressed: it is ten times as long as the file.
COMPRESSED_LOG = LOG + ".gz"
DEMO = "demo.yaml"


@cache
def shipped_models() -> Mapping[str, Path]:
    """Return the folders of the shipped base models by name."""
    return _folders("models", MODEL_WEIGHTS)


@cache
def shipped_editors() -> Mapping[str, Path]:
    """Return the folders of the shipped editors by name."""
    return _folders("editors", EDITOR_WEIGHTS)


def _folders(kind: str, weights: str) -> Mapping[str, Path]:
    return {file.parent.name: file.parent for file in sorted((ARTIFACTS / kind).glob(f"*/{weights}"))}


def weights_file(name_or_path: str | Path) -> Path:
    """Return the weights of a shipped editor by its name, or the path itself if it is no such name."""
    folder = shipped_editors().get(str(name_or_path))
    return Path(name_or_path) if folder is None else folder / EDITOR_WEIGHTS


def recipe_file(name_or_path: str | Path, shipped: Mapping[str, Path]) -> Path:
    """Return the recipe of a shipped artefact by its name, or the path itself if it is no such name."""
    folder = shipped.get(str(name_or_path))
    return Path(name_or_path) if folder is None else folder / RECIPE


def demo_file(name: str) -> Path | None:
    """Return the script of the demo with a shipped editor; None for an editor without one, and for other names."""
    folder = shipped_editors().get(name)
    file = None if folder is None else folder / DEMO
    return file if file is not None and file.is_file() else None


def base_of(name: str) -> str:
    """Return the name of the base model of a shipped editor, as its card has it."""
    card = json.loads((shipped_editors()[name] / CARD).read_text(encoding="utf-8"))
    return str(card["base"]["name"])


def editor_for(model: str) -> str:
    """Return the name of the first shipped editor of a base model that has a name; ``bundled`` for any other model."""
    return next((name for name in shipped_editors() if base_of(name) == model), "bundled")


def log_entries(name: str) -> list[dict[str, Any]]:
    """Return the entries of the training log of a shipped editor."""
    content = gzip.decompress((shipped_editors()[name] / COMPRESSED_LOG).read_bytes())
    return [json.loads(line) for line in content.splitlines()]
