"""The examples of CONTRIBUTING.md and of the pages that it links, together in one package and experiment."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from instructedit.cli.app import app
from instructedit.evaluation.metrics import registry
from instructedit.experiments.plan import Experiment, load_experiment, needed_files
from instructedit.experiments.report import summarise
from instructedit.experiments.run import run_one

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
    task = yaml.safe_load(block("docs/tasks.md", "## A task of your own", "yaml"))
    (folder / "tasks" / "capitals.yaml").write_text(yaml.safe_dump(task))
    (folder / "tasks" / task["files"]["test"]).write_text(block("docs/tasks.md", "## A task of your own", "json"))


def shown(*arguments: str) -> Any:
    """Return the JSON that a command prints."""
    result = CliRunner().invoke(app, [*arguments, "--json", "-"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def reproduced(folder: Path, experiment: dict[str, Any], base: Path) -> dict[str, Any]:
    """Return the result of an experiment of two edits; tests/integration/test_experiments.py starts the processes."""
    (folder / "mine.yaml").write_text(yaml.safe_dump(experiment | {"base": str(base), "edits": 2}))
    plan = load_experiment(folder / "mine.yaml")
    for label, seed in plan.work():
        run_one(plan, label, seed, folder / "out", folder)
    return summarise(plan, folder / "out")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with tasks of its own, from which packages are imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("INSTRUCTEDIT_TASKS", "tasks")
    monkeypatch.delenv("INSTRUCTEDIT_DATA", raising=False)
    (tmp_path / "tasks").mkdir()
    registry._of_packages.cache_clear()
    yield tmp_path
    registry._of_packages.cache_clear()
    for module in ("block_l2", "target_rank"):
        sys.modules.pop(module, None)


def test_the_packages_examples_work_together(folder: Path, checkpoint: Callable[[str], Path]) -> None:
    write_package(folder)
    assert shown("editors")["block-l2"]["summary"].startswith("Fine-tunes all MLP matrices of one block")
    assert "target_rank" in shown("metrics")
    assert "capitals" in shown("tasks")
    experiment = yaml.safe_load(block("CONTRIBUTING.md", "### A package of your own", "yaml"))
    rows = reproduced(folder, experiment, checkpoint("gpt2"))["rows"]
    assert {(row["test"], row["editor"]) for row in rows} == {
        (test, editor) for test in ("capitals", "counterfact") for editor in ("FT-L", "block-l2")
    }
    assert all(row["metrics"]["target_rank"]["mean"] > 0 for row in rows)


def test_the_experiment_of_the_guide_needs_no_data_folder(folder: Path, checkpoint: Callable[[str], Path]) -> None:
    experiment = yaml.safe_load(block("docs/experiments.md", "## An experiment of your own", "yaml"))
    plan = Experiment.model_validate(experiment)
    assert all(name.startswith("bundled/") for name in needed_files(plan))
    result = reproduced(folder, experiment, checkpoint("gpt2"))
    assert [row["test"] for row in result["rows"]] == ["counterfact"] * 2 + ["counterfact, generation"] * 2
    assert {difference["of"] for difference in result["differences"]} == {"LoRA"}
