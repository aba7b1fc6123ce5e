"""The examples of CONTRIBUTING.md and of the pages that it links, together in one package and experiment."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]


def block(page: str, heading: str, language: str, number: int = 0) -> str:
    """Return a code block below a heading of a page."""
    text = (ROOT / page).read_text(encoding="utf-8").partition(f"{heading}\n")[2]
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)[number]


def write_package(folder: Path) -> None:
    """Write the modules and the task of the guides, and the entry points as pip would install them."""
    (folder / "block_l2.py").write_text(block("docs/editors.md", "## Add an editor", "python"))
    (folder / "target_rank.py").write_text(block("docs/metrics.md", "## Add a metric", "python"))
    project = tomllib.loads(block("CONTRIBUTING.md", "### A package of your own", "toml"))["project"]
    info = folder / "my_editing-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-editing\nVersion: 0.1\n")
    lines = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
        for group, points in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))
    (folder / "tasks").mkdir()
    task = yaml.safe_load(block("docs/tasks.md", "## A task of your own", "yaml"))
    (folder / "tasks" / "capitals.yaml").write_text(yaml.safe_dump(task))
    (folder / "tasks" / task["files"]["test"]).write_text(block("docs/tasks.md", "## A task of your own", "json"))


def run(folder: Path, *arguments: str) -> Any:
    """Return the JSON that a command prints."""
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "INSTRUCTEDIT_TASKS": "tasks"}
    environment.pop("INSTRUCTEDIT_DATA", None)
    done = subprocess.run(
        [sys.executable, "-m", "instructedit", *arguments, "--json", "-"],
        cwd=folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_packages_examples_work_together(tmp_path: Path, checkpoint: Callable[[str], Path]) -> None:
    write_package(tmp_path)
    assert run(tmp_path, "editors")["block-l2"]["summary"].startswith("Fine-tunes all MLP matrices of one block")
    assert "target_rank" in run(tmp_path, "metrics")
    assert "capitals" in run(tmp_path, "tasks")
    experiment = yaml.safe_load(block("CONTRIBUTING.md", "### A package of your own", "yaml"))
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(experiment | {"base": str(checkpoint("gpt2"))}))
    rows = run(tmp_path, "reproduce", "mine.yaml", "--edits", "2", "--data", ".")["rows"]
    assert {(row["test"], row["editor"]) for row in rows} == {
        (test, editor) for test in ("capitals", "counterfact") for editor in ("FT-L", "block-l2")
    }
    assert all(row["metrics"]["target_rank"]["mean"] > 0 for row in rows)


def test_the_experiment_of_the_guide_needs_no_data_folder(tmp_path: Path, checkpoint: Callable[[str], Path]) -> None:
    experiment = yaml.safe_load(block("docs/experiments.md", "## An experiment of your own", "yaml"))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(experiment | {"base": str(checkpoint("gpt2"))}))
    result = run(tmp_path, "reproduce", "mine.yaml", "--edits", "2")
    assert [row["test"] for row in result["rows"]] == ["counterfact"] * 2 + ["counterfact, generation"] * 2
    assert {difference["of"] for difference in result["differences"]} == {"LoRA"}
