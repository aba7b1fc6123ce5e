"""The README is a test: its commands run, its output and its picture are those of today's model."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from picture import answer, draw

from instructedit.models.language_model import BUNDLED_FOLDER

pytestmark = pytest.mark.xdist_group("bundled")

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
#: Blocks that run as they are; the others need data or a model of the user's.
TESTED = re.findall(r"<!-- tested -->\n```bash\n(.*?)```", README, flags=re.DOTALL)
OUTPUT = re.findall(r"<!-- output -->\n```text\n(.*?)```", README, flags=re.DOTALL)
EXAMPLE = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def invocations() -> list[list[str]]:
    """Return the arguments of every `instructedit` command of the README."""
    lines = [line for block in COMMANDS for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("instructedit ")]


def comparable(text: str) -> list[str]:
    """Return the lines of a table without spaces and without the digits of probabilities."""
    return [re.sub(r"\s+", " ", re.sub(r"\d\.\d{3}", "_", line)).strip() for line in text.strip().splitlines()]


@pytest.mark.parametrize("block", TESTED)
def test_block_runs(block: str, tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "COLUMNS": "128"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for shown in OUTPUT if block == TESTED[0] else []:
        printed = comparable(done.stdout)
        assert printed[: len(comparable(shown))] == comparable(shown), done.stdout


def test_the_readme_shows_one_edit_with_its_output() -> None:
    assert len(TESTED) >= 1
    assert len(OUTPUT) == 1


def test_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-model").symlink_to(BUNDLED_FOLDER)
    names: dict[str, object] = {}
    (code,) = EXAMPLE
    exec(code, names)  # the README's own code
    assert {"language_model", "editor", "delta"} <= names.keys()
    assert (tmp_path / "hendrix.safetensors").is_file()


@pytest.mark.parametrize("arguments", invocations(), ids=lambda arguments: arguments[0])
def test_options_of_every_command_exist(arguments: list[str]) -> None:
    command, *rest = arguments
    help_text = subprocess.run(
        [sys.executable, "-m", "instructedit", command, "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert [option for option in rest if option.startswith("--") and option not in help_text] == []


def test_picture_shows_the_model_of_today() -> None:
    assert draw(answer()) == (ROOT / "docs" / "scope.svg").read_text(encoding="utf-8"), (
        "python benchmarks/picture.py docs/scope.svg"
    )
