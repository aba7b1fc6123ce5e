"""Editors are found by name: the built-in ones lazily, those of other packages by their entry points."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from instructedit.cli.app import app
from instructedit.deltas.delta import DeltaBatch
from instructedit.editors import registry
from instructedit.editors.ft import ConstrainedFineTuning
from instructedit.editors.lookup import load_editor
from instructedit.editors.registry import BUILT_IN, editor_class, editor_names, register, registered_editors
from instructedit.errors import EditorError
from instructedit.models.language_model import LanguageModel
from instructedit.records import EditRequest

#: All that another package has to hold.
MODULE = '''
"""An editor that multiplies a matrix by a number."""

from pydantic import Field

from instructedit.deltas.delta import DeltaBatch
from instructedit.deltas.factors import Dense
from instructedit.editors.base import DirectEditor, EditorConfig
from instructedit.editors.direct import last_mlp_matrix


class ShrinkConfig(EditorConfig):
    """Hyperparameters of Shrink."""

    factor: float = Field(0.5, description="of the matrix")


class Shrink(DirectEditor[ShrinkConfig]):
    """Multiplies the last block's matrix."""

    name = "shrink"
    paper = "nobody"
    Config = ShrinkConfig

    def __init__(self, config, matrix, split_layer):
        super().__init__()
        self.config, self.matrix, self.split_layer = config, matrix, split_layer

    @classmethod
    def create(cls, config, language_model):
        block = len(language_model.structure.blocks) - 1
        return cls(config, last_mlp_matrix(language_model, block), block)

    def edit(self, language_model, requests, instructions):
        weight = language_model.model.get_submodule(self.matrix.name).weight
        change = (self.config.factor - 1) * weight
        return DeltaBatch({self.matrix.name: Dense(change.expand(len(requests), -1, -1))})
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed package with one editor: a module, and the entry point that pip writes for it."""
    (tmp_path / "shrink.py").write_text(MODULE)
    info = tmp_path / "shrink-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shrink\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{registry.GROUP}]\nshrink = shrink:Shrink\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("shrink", None)


def test_an_editor_of_another_package_is_found_by_name_and_in_yaml(
    package: Path, gpt2: LanguageModel, requests_: list[EditRequest]
) -> None:
    editor = load_editor("shrink", gpt2)
    edits = editor.edit(gpt2, requests_, [None] * 3)
    assert isinstance(edits, DeltaBatch)
    weight = gpt2.model.get_submodule("transformer.h.3.mlp.c_proj").weight
    assert torch.equal(edits.factors["transformer.h.3.mlp.c_proj"].select(1).dense(), -0.5 * weight)
    file = package / "own.yaml"
    file.write_text("name: shrink\nfactor: 0.25\n")
    assert load_editor(file, gpt2).config.factor == 0.25
    file.write_text("name: shrink\nfaktor: 0.25\n")
    with pytest.raises(EditorError, match=r"own\.yaml: faktor: Extra inputs"):
        load_editor(file, gpt2)
    with pytest.raises(EditorError, match="Did you mean 'shrink'"):
        load_editor("shrimk", gpt2)


@pytest.mark.usefixtures("package")
def test_an_editor_of_another_package_is_listed() -> None:
    shown = CliRunner().invoke(app, ["editors", "--json", "-"])
    methods = json.loads(shown.stdout)
    assert methods.keys() == BUILT_IN.keys() | {"shrink"}
    assert methods["shrink"] == {
        "summary": "Multiplies the last block's matrix.",
        "needs_training": False,
        "reads_instruction": False,
        "paper": "nobody",
    }


def test_every_method_is_listed_with_what_it_needs_and_reads() -> None:
    methods = registered_editors()
    assert {name for name, method in methods.items() if method.needs_training} == {"instructedit", "ke", "mend"}
    assert {name for name, method in methods.items() if method.reads_instruction} == {"instructedit"}
    assert all(method.summary.endswith(".") and method.paper for method in methods.values())
    shown = CliRunner().invoke(app, ["editors"]).stdout
    assert all(name in shown for name in methods)


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_method_and_every_field_of_its_config_are_described(name: str) -> None:
    editor = editor_class(name)
    assert editor.name == name
    fields = editor.Config.model_fields
    assert all(field.description for field in fields.values())
    editor.Config()


@pytest.mark.parametrize(
    ("entry_point", "problem"),
    [
        ("other = shrink:Shrink", "has the `name` 'shrink'; it must equal the name of the entry point"),
        ("other = shrink:ShrinkConfig", "is not a subclass of"),
        ("other = shrink:Missing", "cannot be imported"),
        ("other = nowhere:Shrink", "cannot be imported: No module named 'nowhere'"),
    ],
)
def test_a_wrong_entry_point_is_named_and_hides_no_other_method(
    package: Path, caplog: pytest.LogCaptureFixture, entry_point: str, problem: str
) -> None:
    (package / "shrink-1.0.dist-info" / "entry_points.txt").write_text(f"[{registry.GROUP}]\n{entry_point}\n")
    with pytest.raises(EditorError, match=problem):
        editor_class("other")
    with caplog.at_level(logging.WARNING):
        assert registered_editors().keys() == BUILT_IN.keys()
    assert "the editor 'other'" in caplog.text


def test_no_package_replaces_a_built_in_method(package: Path, caplog: pytest.LogCaptureFixture) -> None:
    (package / "shrink-1.0.dist-info" / "entry_points.txt").write_text(f"[{registry.GROUP}]\nft = shrink:Shrink\n")
    with caplog.at_level(logging.WARNING):
        assert editor_names() == sorted(BUILT_IN)
    assert "ft = shrink:Shrink is ignored" in caplog.text
    assert editor_class("ft") is ConstrainedFineTuning


def test_a_program_registers_an_editor(monkeypatch: pytest.MonkeyPatch, gpt2: LanguageModel) -> None:
    monkeypatch.setattr(registry, "_REGISTERED", {})

    @register
    class Own(ConstrainedFineTuning):
        name = "own"

    assert isinstance(load_editor("own", gpt2), Own)
    for taken in (Own, ConstrainedFineTuning):
        with pytest.raises(EditorError, match="already registered"):
            register(taken)


@pytest.mark.parametrize("name", ["mend", "instructedit", "ke"])
def test_a_trained_method_is_no_editor_by_its_name_alone(name: str, gpt2: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(EditorError, match=f"{name} has to be trained: give a file"):
        load_editor(name, gpt2)
    (tmp_path / "own.yaml").write_text(f"name: {name}\n")
    with pytest.raises(EditorError, match=r"own\.yaml: \w+ has to be trained: set it as `editor:`"):
        load_editor(tmp_path / "own.yaml", gpt2)


def test_the_registry_imports_no_method() -> None:
    code = (
        "import sys\nfrom instructedit.editors.registry import BUILT_IN, editor_names\neditor_names()\n"
        "print([m for m in (t.partition(':')[0] for t in BUILT_IN.values()) if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
