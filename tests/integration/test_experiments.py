"""An experiment on a tiny model: what is run, what is kept, what is run again, and what is written about it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from instructedit.editors.mend import Mend, MendConfig
from instructedit.errors import EditorError, RecipeError
from instructedit.experiments import caching, run
from instructedit.experiments.caching import CachingEditor
from instructedit.experiments.cells import cell_file
from instructedit.experiments.cluster import Cluster
from instructedit.experiments.plan import Experiment, load_experiment, needed_files, stages_of
from instructedit.experiments.report import as_markdown, draw, summarise
from instructedit.experiments.run import run_all, run_one
from instructedit.models.language_model import LanguageModel
from instructedit.records import EditRecord, EditRequest
from instructedit.training.recipe_file import load_stages

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def place(
    tmp_path: Path,
    checkpoint: Callable[[str], Path],
    records: list[EditRecord],
    write_jsonl: Callable[[Path, list[EditRecord]], Path],
) -> Path:
    """A folder with data, a recipe, a direct method and an experiment that uses them."""
    write_jsonl(tmp_path / "own.jsonl", records)
    recipe = {
        "editor": {"name": "mend", "blocks": 2, "rank": 8, "step_size": 0.1},
        "tasks": [{"task": "counterfact", "files": ["own.jsonl"]}],
        "optimisation": {"steps": 9, "batch": 3, "warmup_steps": 1, "validation_edits": 2},
    }
    (tmp_path / "mend.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "plain.yaml").write_text("name: in-context\ntemplate: ''\n")
    tests = [
        {"task": "counterfact", "file": "own.jsonl", "metrics": ["reliability", "locality"]},
        {"task": "counterfact", "file": "own.jsonl", "metrics": ["reliability"], "protocol": "generation"},
    ]
    experiment = {
        "title": "Tiny",
        "base": str(checkpoint("gpt2")),
        "seeds": [0, 1],
        "edits": 4,
        "tests": tests,
        "editors": {
            "Base": {"pretrained": "plain.yaml"},
            "MEND": {"recipe": "mend.yaml", "overrides": {"optimisation": {"steps": 2}}},
        },
        "compare": [["MEND", "Base"]],
        "published": {"A paper": {"MEND": {"counterfact": [1.5, None]}}},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(experiment))
    return tmp_path


def run_here(place: Path) -> Experiment:
    experiment = load_experiment(place / "tiny.yaml")
    for label, seed in experiment.work():
        run_one(experiment, label, seed, place / "out", place)
    return experiment


def test_every_editor_and_seed_is_run_once_and_written_up(place: Path) -> None:
    experiment = run_here(place)
    assert experiment.work() == [("Base", 0), ("MEND", 0), ("MEND", 1)]
    result = summarise(experiment, place / "out")
    rows = {(row["test"], row["editor"]): row for row in result["rows"]}
    assert len(rows) == 4
    assert rows["counterfact", "Base"]["metrics"]["locality"]["mean"] == 1.0
    assert rows["counterfact", "MEND"]["seeds"] == [0, 1]
    by_seed = rows["counterfact", "MEND"]["metrics"]["reliability"]["by_seed"]
    assert rows["counterfact", "MEND"]["metrics"]["reliability"]["mean"] == pytest.approx(sum(by_seed) / 2, abs=1e-4)
    assert rows["counterfact", "MEND"]["training_seconds"] >= 0
    assert "training_seconds" not in rows["counterfact", "Base"]
    difference = next(d for d in result["differences"] if d["metric"] == "reliability" and d["test"] == "counterfact")
    one, other = (rows["counterfact", label]["metrics"]["reliability"]["mean"] for label in ("MEND", "Base"))
    assert difference["mean"] == pytest.approx(one - other, abs=1e-4)
    assert difference["low"] <= difference["mean"] <= difference["high"]
    page = as_markdown(experiment, result)
    assert "| A paper (published) |" in page
    assert "1.5 / –" in page
    draw(experiment, result, place / "out" / "result.png")
    assert (place / "out" / "result.png").stat().st_size > 5000


def test_what_is_kept_is_not_run_again_and_what_is_damaged_or_outdated_is(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = run_here(place)
    asked: list[str] = []
    evaluate = run.evaluate

    def counted(*arguments: Any, **more: Any) -> Any:
        asked.append(str(more["protocol"]))
        return evaluate(*arguments, **more)

    monkeypatch.setattr(run, "evaluate", counted)
    run_here(place)
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    for name in ("tiny.yaml", "plain.yaml", "mend.yaml"):
        shutil.copy(place / name, elsewhere)
    moved = load_experiment(elsewhere / "tiny.yaml")
    run_one(moved, "Base", 0, place / "out", place)
    run_one(moved, "MEND", 1, place / "out", place)
    assert asked == []
    cell_file(place / "out", "MEND", 1, experiment.tests[1]).write_bytes(b"{")
    run_here(place)
    assert asked == ["generation"]
    asked.clear()
    (place / "plain.yaml").write_text("name: in-context\ntemplate: 'Hm. '\n")
    assert {row["editor"] for row in summarise(experiment, place / "out")["rows"]} == {"MEND"}
    run_here(place)
    assert asked == ["plain", "generation"]


def test_trained_editors_are_compared_on_the_seeds_that_both_have(place: Path) -> None:
    raw = yaml.safe_load((place / "tiny.yaml").read_text())
    raw["editors"]["Longer"] = {"recipe": "mend.yaml", "overrides": {"optimisation": {"steps": 3}}}
    raw["compare"] = [["Longer", "MEND"], ["MEND", "Base"]]
    (place / "tiny.yaml").write_text(yaml.safe_dump(raw))
    experiment = run_here(place)
    test = experiment.tests[0]
    for label, seed, value in (("MEND", 0, 0.5), ("MEND", 1, 0.25), ("Longer", 0, 1.0), ("Longer", 1, 0.0)):
        file = cell_file(place / "out", label, seed, test)
        cell = json.loads(file.read_text())
        cell["records"] = {edit: values | {"locality": value} for edit, values in cell["records"].items()}
        file.write_text(json.dumps(cell))

    def difference(of: str) -> dict[str, Any]:
        found = summarise(experiment, place / "out")["differences"]
        return next(d for d in found if (d["of"], d["test"], d["metric"]) == (of, test.label, "locality"))

    assert difference("Longer")["by_seed"] == [0.5, -0.25]
    assert difference("Longer")["mean"] == pytest.approx(0.125)
    assert "by_seed" not in difference("MEND")  # a ready editor has no seeds
    assert "| 50.0, -25.0 |" in as_markdown(experiment, summarise(experiment, place / "out"))
    cell_file(place / "out", "MEND", 1, test).unlink()
    assert difference("Longer")["by_seed"] == [0.5]
    assert difference("Longer")["mean"] == pytest.approx(0.5)


def test_an_overview_has_one_metric_of_all_tests_and_editors(place: Path) -> None:
    experiment = run_here(place).model_copy(update={"overview": "locality"})
    page = as_markdown(experiment, summarise(experiment, place / "out"))
    head, *rows = page.split("## locality")[1].split("## counterfact")[0].strip().splitlines()
    assert head == "| test | Base | MEND |"
    assert rows[1].startswith("| counterfact | 100.0 (100.0 to 100.0) | ")
    assert rows[2].startswith("| counterfact, generation | 100.0 (100.0 to 100.0) | ")


def test_an_editor_makes_the_same_edits_once(gpt2: LanguageModel) -> None:
    made = []

    class Counting(Mend):
        def edit(self, language_model: LanguageModel, requests: Any, instructions: Any) -> Any:
            made.append(len(requests))
            return super().edit(language_model, requests, instructions)

    editor = CachingEditor(Counting.create(MendConfig(blocks=2, rank=4), gpt2))
    requests = [EditRequest(prompt="Lena was born in", target=town) for town in ("Oston", "Maravel")]
    first = editor.edit(gpt2, requests, [None, None])
    assert editor.edit(gpt2, requests, [None, None]) is first
    editor.edit(gpt2, requests, [None, "Only her."])
    editor.edit(gpt2, requests[:1], [None])
    assert made == [2, 2, 1]
    assert (editor.name, editor.split_layer) == ("mend", 2)


def test_the_memory_of_edits_is_bounded(gpt2: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caching, "CACHED_BATCHES", 2)
    editor = CachingEditor(Mend.create(MendConfig(blocks=2, rank=4), gpt2))
    request = EditRequest(prompt="Lena was born in", target="Oston")
    first = editor.edit(gpt2, [request], ["0"])
    editor.edit(gpt2, [request], ["1"])
    assert editor.edit(gpt2, [request], ["0"]) is first
    editor.edit(gpt2, [request], ["2"])
    assert editor.edit(gpt2, [request], ["0"]) is first, "1 was used longer ago"
    assert len(editor._batches) == 2


@pytest.fixture(params=["processes", "cluster"])
def cluster(request: pytest.FixtureRequest) -> Cluster | None:
    return None if request.param == "processes" else Cluster("local", threads=1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_processes_do_the_same_and_a_failure_spares_the_others(place: Path, cluster: Cluster | None) -> None:
    raw = yaml.safe_load((place / "tiny.yaml").read_text())
    raw["editors"] = {"MEND": raw["editors"]["MEND"], "broken": {"pretrained": "nothing"}}
    raw |= {"seeds": [0], "tests": raw["tests"][:1], "compare": [], "published": {}}
    (place / "tiny.yaml").write_text(yaml.safe_dump(raw))
    experiment = load_experiment(place / "tiny.yaml")
    done: list[str] = []
    with pytest.raises(EditorError, match=r"(?s)run the command again.*broken, seed 0: EditorError: .*nothing"):
        run_all(place / "tiny.yaml", experiment, place / "apart", place, 2, done.append, cluster)
    assert sorted(done) == ["MEND, seed 0", "broken, seed 0"]
    run_one(experiment, "MEND", 0, place / "here", place)
    here, apart = (
        json.loads(cell_file(place / name, "MEND", 0, experiment.tests[0]).read_text()) for name in ("here", "apart")
    )
    assert here["records"] == apart["records"]


def test_a_cluster_that_is_not_there_is_reported() -> None:
    with pytest.raises(EditorError, match=r"there is no Ray cluster at 127\.0\.0\.1:1: "):
        Cluster("127.0.0.1:1", threads=1)


def test_metrics_are_reported_apart_for_known_and_unknown_facts(place: Path) -> None:
    raw = yaml.safe_load((place / "tiny.yaml").read_text())
    raw |= {"seeds": [0], "editors": {"Base": raw["editors"]["Base"]}, "compare": [], "published": {}, "edits": 6}
    raw |= {"by_knowledge": True, "tests": raw["tests"][:1]}
    (place / "tiny.yaml").write_text(yaml.safe_dump(raw))
    experiment = run_here(place)
    summary = summarise(experiment, place / "out")
    [row] = summary["rows"]
    parts = row["by_knowledge"]
    known = row["metrics"]["known"]
    assert parts["unknown"]["reliability"]["count"] == round(known["count"] * (1 - known["mean"]))
    thirds = [parts[name] for name in ("least certain third", "middle third", "most certain third")]
    assert [third["reliability"]["count"] for third in thirds] == [2, 2, 2]
    assert "| Base | least certain third | 2 |" in as_markdown(experiment, summary)


def test_a_task_of_ones_own_is_tested_by_its_columns(place: Path) -> None:
    rows = [
        {"sentence": f"{name} was born in", "town": "Oston", "question": f"The birthplace of {name} is"}
        for name in ("Lena", "Tom", "Ida")
    ]
    (place / "towns.json").write_text(json.dumps(rows))
    task = {
        "name": "towns",
        "summary": "a birthplace",
        "columns": {"prompt": "sentence", "target": "town", "rephrases": ["question"]},
        "in_scope": ["request", "rephrase"],
        "out_of_scope": [],
        "instructions": {"name": "Towns", "templates": ["One birthplace."], "held_out_templates": ["One town."]},
    }
    (place / "tasks").mkdir()
    (place / "tasks" / "towns.yaml").write_text(yaml.safe_dump(task))
    raw = yaml.safe_load((place / "tiny.yaml").read_text())
    raw["tests"] = [{"task": "tasks/towns.yaml", "file": "towns.json", "metrics": ["generalization"]}]
    raw |= {"seeds": [0], "editors": {"Base": {"pretrained": "plain.yaml"}}, "compare": [], "published": {}}
    (place / "tiny.yaml").write_text(yaml.safe_dump(raw))
    [row] = summarise(run_here(place), place / "out")["rows"]
    assert row["test"] == "towns"
    assert row["metrics"]["generalization"]["count"] == 3


def test_the_files_that_an_experiment_reads_are_those_of_tests_and_recipes(place: Path) -> None:
    raw = yaml.safe_load((place / "tiny.yaml").read_text())
    raw["tests"] = [{"task": "counterfact", "file": "bundled/counterfact.jsonl"}]
    (place / "tiny.yaml").write_text(yaml.safe_dump(raw))
    assert needed_files(load_experiment(place / "tiny.yaml")) == {"bundled/counterfact.jsonl", "own.jsonl"}
    del raw["editors"]["MEND"]
    (place / "tiny.yaml").write_text(yaml.safe_dump(raw | {"compare": [], "published": {}}))
    assert needed_files(load_experiment(place / "tiny.yaml")) == {"bundled/counterfact.jsonl"}


def test_recipes_are_trained_in_stages(place: Path) -> None:
    raw = yaml.safe_load((place / "mend.yaml").read_text())
    staged = raw | {"stages": [{}, {"scope_template_share": 0.1}, {"seed": 5}]}
    (place / "mend.yaml").write_text(yaml.safe_dump(staged))
    experiment_raw = yaml.safe_load((place / "tiny.yaml").read_text())
    experiment_raw["editors"]["MEND"]["stages"] = 2
    experiment_raw["seeds"] = [3]
    (place / "tiny.yaml").write_text(yaml.safe_dump(experiment_raw))
    experiment = run_here(place)
    stages = stages_of(experiment.editors["MEND"], experiment.base, 3)
    assert [(s.scope_template_share, s.optimisation.steps, s.seed) for s in stages] == [(0.5, 2, 3), (0.1, 2, 3)]
    folder = place / "out" / "editors" / "mend-3"
    first, second = (load_file(folder / f"stage-{number}" / "editor.safetensors") for number in (1, 2))
    assert any(not torch.equal(first[name], value) for name, value in second.items())
    assert (folder / "editor.safetensors").read_bytes() == (folder / "stage-2" / "editor.safetensors").read_bytes()
    row = summarise(experiment, place / "out")["rows"][-1]
    logs = [(folder / f"stage-{number}" / "log.jsonl").read_text().splitlines() for number in (1, 2)]
    seconds = [max(json.loads(line).get("seconds", 0.0) for line in log) for log in logs]
    assert row["training_seconds"] == pytest.approx(sum(seconds))
    staged["stages"][1]["scope_template_share"] = 0.2
    (place / "mend.yaml").write_text(yaml.safe_dump(staged))
    assert {row["editor"] for row in summarise(experiment, place / "out")["rows"]} == {"Base"}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"editors": {"A": {"pretrained": "b", "stages": 2}}}, "`stages` need a `recipe`"),
        ({"editors": {"A": {"recipe": "a", "pretrained": "b"}}}, "give either"),
        ({"compare": [["MEND", "Nobody"]]}, "Nobody"),
        ({"tests": [{"task": "zsre", "file": "a"}] * 2}, "same name: zsre"),
        ({"seeds": []}, "seeds"),
        (
            {"editors": {"MEND 1": {"pretrained": "b"}, "mend-1": {"pretrained": "b"}}},
            "one folder of results: MEND 1, mend-1",
        ),
    ],
    ids=str,
)
def test_mistakes_are_reported(place: Path, change: dict[str, Any], problem: str) -> None:
    raw = yaml.safe_load((place / "tiny.yaml").read_text())
    (place / "tiny.yaml").write_text(yaml.safe_dump(raw | change))
    with pytest.raises(RecipeError, match=problem):
        load_experiment(place / "tiny.yaml")


@pytest.mark.parametrize("path", sorted((RECIPES / "experiments").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_experiments_can_be_read(path: Path) -> None:
    experiment = load_experiment(path)
    for entry in experiment.editors.values():
        if entry.recipe is not None:
            stages = stages_of(entry, experiment.base, 7)
            assert all(recipe.seed == 7 for recipe in stages)
            assert load_stages(entry.recipe)[0].editor.blocks == stages[0].editor.blocks
        elif entry.pretrained is not None and entry.pretrained.endswith(".yaml"):
            assert Path(entry.pretrained).is_file()


def test_overrides_change_the_recipe_and_leave_the_rest(place: Path) -> None:
    experiment = load_experiment(place / "tiny.yaml")
    [recipe] = stages_of(experiment.editors["MEND"], experiment.base, 1)
    assert (recipe.optimisation.steps, recipe.optimisation.batch, recipe.seed) == (2, 3, 1)
