"""Training recipes are checked as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from instructedit.editors.instructedit import InstructEditConfig
from instructedit.editors.mend import MendConfig
from instructedit.errors import DataError, RecipeError
from instructedit.training.recipe import Recipe, load_recipe, parse_recipe

MIX = {"task": "counterfact", "files": ["own.jsonl"]}
SHIPPED = sorted(
    path
    for path in (Path(__file__).parents[2] / "recipes").glob("*.yaml")
    if {"tasks", "extends"} & yaml.safe_load(path.read_text(encoding="utf-8")).keys()
)


def mistakes(raw: Any) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(raw)
    return caught.value.mistakes


def test_three_mistakes_are_listed_at_once() -> None:
    found = mistakes(
        {"tasks": [MIX], "optimisation": {"steps": 0, "batch": "many"}, "editor": {"conditioning": "mind-reading"}}
    )
    assert [mistake.split(":")[0] for mistake in found] == [
        "editor.conditioning",
        "optimisation.steps",
        "optimisation.batch",
    ]
    assert "(given: 'many')" in found[2]
    with pytest.raises(RecipeError, match=r"^recipe: 3 mistakes\n  - editor\.conditioning: .*\n  - .*\n  - "):
        parse_recipe({"tasks": [MIX], "optimisation": {"steps": 0, "batch": "many"}, "editor": {"conditioning": "x"}})


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"optimisation": {"learning_rat": 1}}, "optimisation.learning_rat"),
        ({"colour": "red"}, "colour"),
        ({"editor": {"rank": 0}}, "editor.rank"),
        ({"editor": {"step_size": -1.0}}, "editor.step_size"),
        ({"seed": "zero"}, "seed"),
        ({"wordings": 1.5}, "wordings"),
        ({"tasks": []}, "tasks"),
        ({"tasks": [{"task": "zsre"}]}, "tasks.0.files"),
        ({"tasks": [MIX | {"weight": 0}]}, "tasks.0.weight"),
        ({"mixture": "random"}, "mixture"),
        ({"editor": {"encoder": "sentence"}}, "editor"),
        ({"editor": {"sentence_encoder": "some/folder"}}, "editor"),
        ({"optimisation": {"learning_rate": float("nan")}}, "optimisation.learning_rate"),
    ],
)
def test_mistake_is_told_by_its_place(change: dict[str, Any], place: str) -> None:
    found = mistakes({"tasks": [MIX], **change})
    assert [mistake.split(": ")[0] for mistake in found] == [place]


def test_recipe_without_tasks_is_a_mistake() -> None:
    assert mistakes({}) == ("tasks: Field required",)


@pytest.mark.parametrize("conditioning", ["prefix", "hypernetwork", "both"])
def test_mend_takes_no_instruction(conditioning: str) -> None:
    (mistake,) = mistakes({"tasks": [MIX], "editor": {"name": "mend", "conditioning": conditioning}})
    assert mistake.startswith("editor.conditioning: Extra inputs are not permitted")


def test_a_recipe_has_the_config_of_its_method() -> None:
    assert parse_recipe({"tasks": [MIX], "editor": {"name": "mend", "rank": 7}}).editor == MendConfig(rank=7)
    (mistake,) = mistakes({"tasks": [MIX], "editor": {"name": "mned"}})
    assert mistake.startswith("editor: ")
    assert "Did you mean 'mend'?" in mistake
    (mistake,) = mistakes({"tasks": [MIX], "editor": {"name": "rome"}})
    assert "rome needs no training" in mistake


def test_recipes_of_two_methods_have_different_settings() -> None:
    plain, mend = (parse_recipe({"tasks": [MIX], "editor": editor}) for editor in ({}, {"name": "mend"}))
    assert plain.settings() != mend.settings()


def test_task_listed_twice_is_a_mistake() -> None:
    (mistake,) = mistakes({"tasks": [MIX, MIX, {"task": "recent", "files": ["a"]}]})
    assert "tasks listed twice: counterfact" in mistake


@pytest.mark.parametrize("raw", [None, [], "text", 3])
def test_recipe_that_is_no_mapping_is_told(raw: object) -> None:
    assert mistakes(raw) == ("expected `key: value` lines at the top level",)


def test_defaults_need_tasks_alone() -> None:
    recipe = parse_recipe({"tasks": [MIX]})
    assert recipe.base == "bundled"
    assert recipe.mixture == "equal"
    assert recipe.editor == InstructEditConfig()
    assert recipe.editor.conditions_hypernetwork
    assert not recipe.editor.reads_prefix
    assert recipe.objective.edit_weight == recipe.objective.locality_weight == 1


@pytest.mark.parametrize(
    "editor",
    [
        {},
        {"conditioning": "both", "encoder": "base"},
        pytest.param(
            {"name": "mend"},
        ),
    ],
    ids=str,
)
def test_recipe_survives_writing_and_reading(editor: dict[str, str]) -> None:
    recipe = parse_recipe({"tasks": [MIX], "editor": editor})
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize(
    ("content", "error", "problem"),
    [
        (b"tasks: [", DataError, "is not valid YAML"),
        (b"\xff\xfe", DataError, "is not UTF-8 text"),
        (b"", RecipeError, "expected `key: value`"),
    ],
)
def test_file_that_is_no_recipe_is_told(tmp_path: Path, content: bytes, error: type[Exception], problem: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(error, match=problem) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)


def test_missing_recipe_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.yaml: cannot be read: No such file"):
        load_recipe(tmp_path / "nowhere.yaml")


def test_yaml_numbers_are_read(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("tasks: [{task: recent, files: [a]}]\noptimisation: {learning_rate: 5e-4, patience: 3}\n")
    recipe = load_recipe(path)
    assert recipe.optimisation.learning_rate == 5e-4
    assert recipe.optimisation.patience == 3


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipe_is_valid(path: Path) -> None:
    assert load_recipe(path).tasks


def test_a_recipe_extends_another(tmp_path: Path) -> None:
    (tmp_path / "whole.yaml").write_text(
        yaml.safe_dump({"tasks": [MIX], "seed": 3, "editor": {"rank": 7, "blocks": 2}})
    )
    (tmp_path / "other.yaml").write_text("extends: whole.yaml\neditor: {rank: 9}\n")
    found = load_recipe(tmp_path / "other.yaml")
    assert (found.seed, found.editor.rank, found.editor.blocks) == (3, 9, 2)
    (tmp_path / "whole.yaml").write_text("extends: other.yaml\n")
    with pytest.raises(RecipeError, match=r"circle \(other\.yaml -> whole\.yaml -> other\.yaml\)"):
        load_recipe(tmp_path / "other.yaml")
    (tmp_path / "other.yaml").write_text("extends: nowhere.yaml\n")
    with pytest.raises(DataError, match=r"nowhere\.yaml"):
        load_recipe(tmp_path / "other.yaml")


INFINITE = float("inf")


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"seed": 10**4000}, "seed"),
        ({"dtype": "int3"}, "dtype"),
        ({"base": "a\0b"}, "base"),
        ({"base": ""}, "base"),
        ({"temperature": INFINITE}, "temperature"),
        ({"temperature": 1e-300}, "temperature"),
        ({"optimisation": {"learning_rate": INFINITE}}, "optimisation.learning_rate"),
        ({"optimisation": {"learning_rate": 1e30}}, "optimisation.learning_rate"),
        ({"optimisation": {"steps": 10**12}}, "optimisation.steps"),
        ({"optimisation": {"batch": 10**9}}, "optimisation.batch"),
        ({"optimisation": {"clip": INFINITE}}, "optimisation.clip"),
        ({"objective": {"edit_weight": INFINITE}}, "objective.edit_weight"),
        ({"objective": {"forget_weight": 1e30}}, "objective.forget_weight"),
        ({"trunk_memory": {"memory": INFINITE}}, "trunk_memory.memory"),
        ({"editor": {"step_size": INFINITE}}, "editor.step_size"),
        ({"editor": {"rank": 10**9}}, "editor.rank"),
        ({"tasks": [MIX | {"weight": INFINITE}]}, "tasks.0.weight"),
    ],
)
def test_numbers_beyond_all_sense_are_mistakes(change: dict[str, Any], place: str) -> None:
    [mistake] = mistakes({"tasks": [MIX], **change})
    assert mistake.split(": ")[0] == place
    assert len(mistake) < 500


def test_long_values_and_keys_are_cut() -> None:
    for change in ({"mixture": "x" * 200_000}, {"y" * 200_000: 1}, {"seed": "z" * 200_000}):
        [mistake] = mistakes({"tasks": [MIX], **change})
        assert len(mistake) < 1000
    assert "texts as keys" in mistakes({"tasks": [MIX], 3: 4})[0]
