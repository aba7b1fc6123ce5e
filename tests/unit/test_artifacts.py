"""Shipped artefacts: every folder is complete, and its card tells the truth about the files beside it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from instructedit.artifacts import (
    CARD,
    LOG,
    RECIPE,
    base_of,
    editor_for,
    log_entries,
    recipe_file,
    shipped_editors,
    shipped_models,
)
from instructedit.base_model.recipe import load_build_stages
from instructedit.editors.saving import base_fingerprint_of, digest_of, training_of
from instructedit.models.catalogue import known_models
from instructedit.models.language_model import load_language_model
from instructedit.training.log import training_cost
from instructedit.training.recipe_file import load_stages

FOLDERS = [*shipped_models().values(), *shipped_editors().values()]


def card_of(folder: Path) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((folder / CARD).read_text(encoding="utf-8"))
    return card


def test_what_ships() -> None:
    assert list(shipped_models()) == ["bundled"]
    assert list(shipped_editors()) == ["bundled", "bundled-core", "bundled-mend", "smollm2"]
    assert recipe_file("bundled-core", shipped_editors()) == shipped_editors()["bundled-core"] / RECIPE
    assert recipe_file("own.yaml", shipped_editors()) == Path("own.yaml")


def test_a_model_has_an_editor_by_default() -> None:
    assert editor_for("bundled") == "bundled"
    assert editor_for("smollm2-135m-instruct") == "smollm2"
    assert editor_for("a/folder") == "bundled"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_folders_are_complete(folder: Path) -> None:
    assert {RECIPE, CARD} <= {file.name for file in folder.iterdir()}
    card = card_of(folder)
    assert card["name"] == folder.name
    assert {"kind", "summary", "training_data", "metrics", "limits", "reproducible", "reproducibility"} <= card.keys()
    if folder in shipped_models().values():
        assert all(isinstance(json.loads(line), dict) for line in (folder / LOG).read_text().splitlines())


@pytest.mark.parametrize("name", shipped_editors())
def test_card_of_an_editor(name: str, tmp_path: Path) -> None:
    folder = shipped_editors()[name]
    card, stages = card_of(folder), load_stages(name)
    assert card["tensors_sha256"] == digest_of(name)
    assert card["base"]["fingerprint"] == base_fingerprint_of(name)
    assert card["base"]["name"] in (*shipped_models(), *known_models())
    assert card["training_data"] == {mix.task: list(mix.files) for mix in stages[-1].tasks}
    assert card["training"]["stages"] == len(stages)
    assert card["training"]["steps"] == sum(stage.optimisation.steps for stage in stages)
    assert training_of(name)["step"] == stages[-1].optimisation.steps
    (tmp_path / LOG).write_text("".join(json.dumps(entry) + "\n" for entry in log_entries(name)))
    minutes = training_cost(tmp_path / LOG)[0] / 60
    assert card["training"]["minutes"] >= minutes - 0.1  # one log has a clock that restarted
    source = Path(__file__).parents[2] / card["metrics"]["source"]
    first = card["metrics"]["tasks"]["counterfact"]
    assert first["reliability"] in [
        row["metrics"]["reliability"]["mean"]
        for row in json.loads(source.read_text())["rows"]
        if row["data"] == first["file"]
        and digest_of(name) in (row.get("editor_digest"), *row.get("editor_digests", ()))
    ]


@pytest.mark.parametrize("name", [name for name in shipped_editors() if base_of(name) == "bundled"])
def test_editors_of_the_bundled_model_fit_it(name: str) -> None:
    assert base_fingerprint_of(name) == load_language_model("bundled").fingerprint


def test_card_of_the_base_model() -> None:
    folder = shipped_models()["bundled"]
    card = card_of(folder)
    assert card["weights_sha256"] == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert card["fingerprint"] == load_language_model("bundled").fingerprint
    assert not card["reproducible"]
    assert len(card["stages"]) < len(load_build_stages("bundled")), "as the card says, the first stage's was not kept"
