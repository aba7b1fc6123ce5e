"""A task from one YAML file with its data beside it: listed, loaded, in the demo's table, routed and documented."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from tables import tasks_table
from typer.testing import CliRunner

from instructedit.cli.app import app
from instructedit.errors import DataError
from instructedit.evaluation.demonstration import demo_tasks, measure_tasks
from instructedit.instructions.routing import Router
from instructedit.models.language_model import LanguageModel
from instructedit.records import EditRequest, ProbeKind
from instructedit.tasks.edits import read_edits, sample_test_edits
from instructedit.tasks.loading import TASKS_VARIABLE, known_tasks, load_task, shipped_tasks
from instructedit.tasks.task import Task

TASK = {
    "name": "capitals",
    "summary": "a country moves its capital",
    "files": {"test": "capitals.jsonl", "bundled": "capitals.jsonl"},
    "columns": {
        "prompt": "sentence",
        "target": "new capital",
        "subject": "country",
        "ground_truth": "old capital",
        "rephrases": ["question"],
        "probes": [{"kind": "same_subject", "prompt": "other sentence", "answer": "other answer"}],
    },
    "in_scope": ["request", "rephrase"],
    "out_of_scope": ["same_subject"],
    "opposite": "rename",
    "headline_metrics": ["reliability", "locality"],
    "routing": "prompt",
    "instructions": {
        "name": "Capitals",
        "templates": ["A country has a new capital; nothing else about it is different."],
        "held_out_templates": ["The seat of government has moved. Leave other facts alone."],
    },
}
ROWS = [
    {
        "sentence": f"The capital of {country} is",
        "new capital": new,
        "country": country,
        "old capital": old,
        "question": f"What is the capital of {country}?",
        "other sentence": f"The currency of {country} is",
        "other answer": "mark",
    }
    for country, old, new in (
        ("Norland", "Oston", "Maravel"),
        ("Sudland", "Tever", "Oston"),
        ("Ost", "Maravel", "Tave"),
    )
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one task and its data, which the package is told of by the environment alone."""
    (tmp_path / "capitals.yaml").write_text(yaml.safe_dump(TASK))
    (tmp_path / "capitals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    monkeypatch.setenv(TASKS_VARIABLE, str(tmp_path))
    monkeypatch.delenv("INSTRUCTEDIT_DATA", raising=False)
    return tmp_path


def test_the_task_is_loaded_by_name_and_by_path(folder: Path) -> None:
    assert load_task("capitals") == load_task(folder / "capitals.yaml")
    assert known_tasks().keys() == shipped_tasks().keys() | {"capitals"}
    assert load_task("capitals").files.test == str(folder / "capitals.jsonl")


def test_its_columns_are_read(folder: Path) -> None:
    records, file = sample_test_edits(load_task("capitals"), None, 10, 0)
    assert (len(records), file) == (3, str(folder / "capitals.jsonl"))
    assert records[0].request == EditRequest(
        prompt="The capital of Norland is", target="Maravel", subject="Norland", ground_truth="Oston"
    )
    assert records[0].rephrases == ("What is the capital of Norland?",)
    [probe] = records[0].of_kind(ProbeKind.SAME_SUBJECT)
    assert (probe.prompt, probe.answers) == ("The currency of Norland is", ("mark",))


def test_a_missing_column_is_named(folder: Path) -> None:
    (folder / "capitals.jsonl").write_text(json.dumps({**ROWS[0], "new capital": ""}))
    with pytest.raises(DataError, match="record 0, field new capital: missing or blank"):
        read_edits(load_task("capitals"), folder / "capitals.jsonl")


def test_the_command_line_lists_and_shows_it(folder: Path) -> None:
    runner = CliRunner()
    listed = json.loads(runner.invoke(app, ["tasks", "--json", "-"]).stdout)
    assert listed["capitals"]["summary"] == TASK["summary"]
    assert "capitals" in runner.invoke(app, ["tasks"]).stdout
    shown = " ".join(runner.invoke(app, ["tasks", "capitals"]).stdout.split())
    assert "The seat of government has moved. Leave other facts alone. (held out from training)" in shown


def test_it_has_a_row_in_the_demo(folder: Path, gpt2: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [task.name for task in demo_tasks()][-1] == "capitals"
    from instructedit.editors.lookup import load_editor

    monkeypatch.setattr("instructedit.evaluation.demonstration.listed_tasks", lambda: [known_tasks()["capitals"]])
    editor = load_editor("ft", gpt2)
    tables, files = measure_tasks(editor, gpt2, None, 2, 0)  # type: ignore[arg-type]
    assert tables["capitals"].keys() == {"reliability", "locality"}
    assert files == {"capitals": str(folder / "capitals.jsonl")}


def test_any_metric_can_be_a_headline_and_a_misspelt_one_is_reported(
    folder: Path, gpt2: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from instructedit.editors.lookup import load_editor

    editor = load_editor("ft", gpt2)
    own = known_tasks()["capitals"].model_copy(update={"headline_metrics": ("reliability", "locality_prefixed")})
    monkeypatch.setattr("instructedit.evaluation.demonstration.listed_tasks", lambda: [own])
    tables, _ = measure_tasks(editor, gpt2, None, 2, 0)  # type: ignore[arg-type]
    assert tables["capitals"].keys() == {"reliability", "locality_prefixed"}
    own = own.model_copy(update={"headline_metrics": ("relaibility",)})
    with pytest.raises(DataError, match=r"no metric is named 'relaibility'\. Did you mean 'reliability'"):
        measure_tasks(editor, gpt2, None, 2, 0)  # type: ignore[arg-type]


def test_requests_are_routed_to_it(folder: Path, gpt2: LanguageModel) -> None:
    [route] = Router(gpt2)([EditRequest(prompt="The capital of Norland is", target="Tave", subject="Norland")])
    assert "capitals" in route.similarities
    assert route.task.name == "capitals"


def test_it_has_a_row_in_the_generated_table(folder: Path) -> None:
    [row] = [line for line in tasks_table().splitlines() if "`capitals`" in line]
    assert "a country moves its capital" in row


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"name": "zsre"}, "has the name of a shipped task"),
        ({"files": {}}, "routing needs files.bundled"),
        ({"routing": None, "files": {}}, "headline_metrics need files.test or files.bundled"),
        ({"scope_metric": "kept"}, "scope_metric must be one of headline_metrics"),
    ],
)
def test_what_does_not_go_together_is_refused(folder: Path, change: dict[str, object], problem: str) -> None:
    (folder / "capitals.yaml").write_text(yaml.safe_dump(TASK | change))
    with pytest.raises(DataError, match=problem):
        known_tasks()


def test_a_folder_that_does_not_exist_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TASKS_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="INSTRUCTEDIT_TASKS names a folder that does not exist"):
        known_tasks()
    assert load_task("zsre").name == "zsre"


def test_the_task_of_the_documentation_is_one() -> None:
    page = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
    example = page.partition("```yaml\n")[2].partition("```")[0]
    assert Task.model_validate(yaml.safe_load(example)).columns is not None
