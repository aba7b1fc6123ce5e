"""The README and the docs are a test: commands run, options exist, output and picture are those of today's model."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from picture import answer, draw

from instructedit.evaluation.metrics import registry
from instructedit.models.catalogue import known_models
from instructedit.models.language_model import BUNDLED_FOLDER

pytestmark = pytest.mark.xdist_group("bundled")

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))]
#: Blocks that run as they are; the others need data or a model of the user's.
TESTED = [
    block
    for text in (README, *DOCS)
    for block in re.findall(r"<!-- tested -->\n```bash\n(.*?)```", text, flags=re.DOTALL)
]
#: Blocks that need a model that has to be downloaded.
WITH_MODEL = re.findall(r"<!-- with ([\w-]+) -->\n```bash\n(.*?)```", README, flags=re.DOTALL)
#: Examples of edits; tests/integration/test_guides.py runs those of modules.
EXAMPLES = [
    code
    for text in (README, *DOCS)
    for code in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    if "hendrix.safetensors" in code
]
GROUPS = {"instructions", "analyze", "edits"}


def options_by_command() -> dict[str, set[str]]:
    """Return the options that the README and the docs give to each `instructedit` command."""
    options: dict[str, set[str]] = {}
    for text in (README, *DOCS):
        for block in re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("instructedit "):
                    words = shlex.split(line, comments=True)[1:]
                    command = " ".join(words[: 2 if words[0] in GROUPS else 1])
                    options.setdefault(command, set()).update(word for word in words if word.startswith("--"))
    return options


def comparable(text: str) -> list[str]:
    """Return the lines of a table without spaces and without the digits of probabilities."""
    return [re.sub(r"\s+", " ", re.sub(r"\d\.\d{3}", "_", line)).strip() for line in text.strip().splitlines()]


def printed_by(block: str, folder: Path) -> str:
    """Run a block of commands in a folder and return its standard output."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "COLUMNS": "128"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("block", TESTED)
def test_block_runs(block: str, tmp_path: Path) -> None:
    printed_by(block, tmp_path)


@pytest.mark.parametrize(("model", "block"), WITH_MODEL)
def test_block_with_a_downloaded_model_runs_and_prints_what_is_shown(model: str, block: str, tmp_path: Path) -> None:
    if not known_models()[model].is_fetched:
        pytest.skip(f"{model} has not been fetched")
    printed = printed_by(block, tmp_path)
    [shown] = re.findall(r"```text\n(.*?)```", README.partition(block)[2].partition("\n## ")[0], flags=re.DOTALL)
    # Rounding depends on the processor; the edit itself and its paraphrase do not.
    assert comparable(printed)[:6] == comparable(shown)[:6], printed


def test_the_readme_has_examples() -> None:
    assert len(EXAMPLES) >= 2
    assert len(TESTED) >= 1
    assert len(WITH_MODEL) == 1


@pytest.mark.parametrize("code", EXAMPLES, ids=range(len(EXAMPLES)))
def test_python_example_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-model").symlink_to(BUNDLED_FOLDER)
    monkeypatch.setattr(registry, "_REGISTERED", {})  # an example may register a metric of its own
    names: dict[str, object] = {}
    exec(code, names)  # the documentation's own code
    if "save_delta(" in code:
        assert {"editor", "delta"} <= names.keys()
        assert (tmp_path / "hendrix.safetensors").is_file()


@pytest.mark.parametrize(("command", "options"), options_by_command().items())
def test_options_of_every_command_exist(command: str, options: set[str]) -> None:
    help_text = subprocess.run(
        [sys.executable, "-m", "instructedit", *command.split(), "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert {option for option in options if option not in help_text} == set()


def test_picture_shows_the_model_of_today() -> None:
    assert draw(answer()) == (ROOT / "docs" / "scope.svg").read_text(encoding="utf-8"), (
        "python benchmarks/picture.py docs/scope.svg"
    )
