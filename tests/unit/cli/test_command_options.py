"""Options that several commands share, and the hub that cannot be reached."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import typer

import instructedit.cli.reproduce as reproduce
from instructedit.cli import hub
from instructedit.cli.options import _parse_device_map
from instructedit.errors import DataError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("auto", "auto"),
        (" balanced_low_0 ", "balanced_low_0"),
        ("cuda:0", "cuda:0"),
        ('{"a": "cpu", "b": 0}', {"a": "cpu", "b": 0}),
        ({"a": "cpu"}, {"a": "cpu"}),
    ],
)
def test_placement(text: Any, expected: Any) -> None:
    assert _parse_device_map(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "[1]", "17", '"cpu"', "{", '{"a": true}', '{"a": null}', '{"a": -1}', '{"a": {}}', '{"a": 1.5}', "NaN",
        '{"a": "\\ud800"}', '{"a": ' * 5000, "[" * 5000, '{"a": ' + "9" * 5000 + "}", "[/b]",
    ],
)  # fmt: skip
def test_wrong_placement(text: str) -> None:
    with pytest.raises(typer.BadParameter) as refused:
        _parse_device_map(text)
    assert len(str(refused.value)) < 400


def no_connection(*arguments: object) -> socket.socket:
    raise OSError("Name or service not known")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("HF_HUB_OFFLINE", "")  # so that it is put back
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(hub, "getproxies", dict)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.setattr(socket, "create_connection", no_connection)
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return monkeypatch


def test_hub_out_of_reach_is_reported_without_waiting(
    asked: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import os

    import huggingface_hub.constants as constants

    assert hub.offline_if_unreachable("some/model") == "some/model"
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert constants.HF_HUB_OFFLINE is True
    assert "huggingface.co cannot be reached" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["bundled", "bundled-core", "/no/where", "a/b/c", "", None, "tests", "[/b]"])
def test_only_hub_ids_are_requested(asked: pytest.MonkeyPatch, name: str | None) -> None:
    def reached(*arguments: object) -> socket.socket:
        pytest.fail("a connection was made")

    asked.chdir(Path(__file__).parents[3])
    asked.setattr(socket, "create_connection", reached)
    assert hub.offline_if_unreachable(name) == name


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "proxy"])
def test_a_user_who_has_decided_is_not_overruled(asked: pytest.MonkeyPatch, variable: str) -> None:
    import os

    if variable == "proxy":
        asked.setattr(hub, "getproxies", lambda: {"https": "http://proxy"})
    else:
        asked.setenv(variable, "0")
    hub.offline_if_unreachable("some/model")
    assert os.environ.get("HF_HUB_OFFLINE") in (None, "0")


def test_the_help_names_all_experiments() -> None:
    [argument] = get_type_hints(reproduce.reproduce, include_extras=True)["name"].__metadata__
    experiments = [file.stem for file in reproduce.CHECKOUT.glob("*.yaml")]
    assert experiments
    assert [name for name in experiments if name not in argument.help] == []


def test_experiments_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert reproduce._experiment_file("table3").is_file()
    with pytest.raises(DataError, match=r"no experiment 'none' in .*Known: .*table3"):
        reproduce._experiment_file("none")
    monkeypatch.setattr(reproduce, "CHECKOUT", tmp_path / "installed")
    with pytest.raises(DataError, match="part of the repository"):
        reproduce._experiment_file("table3")
    with pytest.raises(DataError, match="no such file"):
        reproduce._experiment_file("mine.yaml")
    (tmp_path / "mine.yaml").write_text("")
    assert reproduce._experiment_file("mine.yaml") == Path("mine.yaml")
    (tmp_path / "recipes" / "experiments").mkdir(parents=True)
    (tmp_path / "recipes" / "experiments" / "own.yaml").write_text("")
    assert reproduce._experiment_file("own") == Path("recipes/experiments/own.yaml")
