"""Which edits instructions are tried on: never those that the editor was trained on, never test edits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from instructedit.data.readers import read_records
from instructedit.errors import DataError
from instructedit.instructions.validation_edits import validation_edits
from instructedit.models.language_model import LanguageModel
from instructedit.records import EditRecord
from instructedit.tasks.loading import listed_tasks, load_task
from instructedit.tasks.task import Task
from instructedit.training.data import read_sources
from instructedit.training.loop import EDITOR, train
from instructedit.training.recipe import parse_recipe


@pytest.fixture
def trained(
    gpt2: LanguageModel,
    tmp_path: Path,
    records: list[EditRecord],
    write_jsonl: Callable[[Path, list[EditRecord]], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[str, dict[str, Any]]:
    """An editor's file and its recipe; the data folder is where it was trained."""
    write_jsonl(tmp_path / "own.jsonl", records)
    monkeypatch.setenv("INSTRUCTEDIT_DATA", str(tmp_path))
    recipe = {
        "editor": {"name": "mend", "blocks": 2, "rank": 4, "step_size": 0.1},
        "tasks": [{"task": "counterfact", "files": ["own.jsonl"]}],
        "optimisation": {"steps": 1, "batch": 2, "warmup_steps": 1, "validation_edits": 3},
    }
    train(parse_recipe(recipe), gpt2, tmp_path / "run", tmp_path)
    return str(tmp_path / "run" / EDITOR), recipe


def subjects(records: list[EditRecord]) -> set[str | None]:
    return {record.request.subject for record in records}


def test_edits_are_those_that_training_held_out(trained: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    file, recipe = trained
    found, source = validation_edits(load_task("counterfact"), file, 10, 0)
    [training], [validation] = read_sources(parse_recipe(recipe), tmp_path)
    assert subjects(found) == subjects(list(validation.pool.records))
    assert not subjects(found) & subjects(list(training.pool.records))
    assert source == "held out of the editor's training"


def test_a_task_without_training_takes_what_any_task_held_out(
    trained: tuple[str, dict[str, Any]], tmp_path: Path
) -> None:
    file, recipe = trained
    found, _ = validation_edits(load_task("forget"), file, 10, 0)
    [training], _ = read_sources(parse_recipe(recipe), tmp_path)
    assert found
    assert not subjects(found) & subjects(list(training.pool.records))


def test_same_seed_same_order(trained: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    task, file = load_task("zsre"), tmp_path / "own.jsonl"
    first, again, other = (validation_edits(task, "mend", 8, seed, file)[0] for seed in (0, 0, 1))
    assert first == again != other
    assert len(first) == 8


def test_without_data_the_edits_that_ship_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSTRUCTEDIT_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setattr("instructedit.instructions.validation_edits.data_folder", lambda: None)
    found, source = validation_edits(load_task("recent"), "bundled", 5, 0)
    assert (len(found), source) == (5, "bundled/recent.jsonl, because the data sets were not found")
    with pytest.raises(DataError, match="no validation edits for task implications, because the data sets were not"):
        validation_edits(load_task("implications"), "bundled", 5, 0)


@pytest.mark.parametrize("task", [task for task in listed_tasks() if task.files.validation], ids=lambda task: task.name)
def test_validation_files_share_no_edit_with_the_tests(task: Task, public_data: Path) -> None:
    def requests(file: str | None) -> set[tuple[str, str]]:
        records = read_records(public_data / (file or ""), skip_incomplete=True)
        return {(record.request.prompt, record.request.target) for record in records}

    assert not requests(task.files.validation) & requests(task.files.test)


def test_records_that_do_not_fit_are_left_out(trained: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"own\.jsonl: no record has the fields that task aliases needs"):
        validation_edits(load_task("aliases"), "mend", 5, 0, tmp_path / "own.jsonl")
