"""Training recipes are checked as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from instructedit.artifacts import shipped_editors
from instructedit.editors.instructedit import InstructEditConfig
from instructedit.editors.mend import MendConfig
from instructedit.editors.saving import training_of
from instructedit.errors import DataError, RecipeError
from instructedit.training.recipe import Recipe, parse_recipe
from instructedit.training.recipe_file import load_stages, merged, parse_stages

MIX = {"task": "counterfact", "files": ["own.jsonl"]}
SHIPPED = [
    *shipped_editors(),
    *sorted(
        str(path)
        for path in (Path(__file__).parents[3] / "recipes").glob("*.yaml")
        if {"tasks", "extends"} & yaml.safe_load(path.read_text(encoding="utf-8")).keys()
    ),
]


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
        ({"scope_template_share": 1.5}, "scope_template_share"),
        ({"tasks": []}, "tasks"),
        ({"tasks": [{"task": "zsre"}]}, "tasks.0.files"),
        ({"tasks": [MIX | {"weight": 0}]}, "tasks.0.weight"),
        ({"tasks": {"counterfact": {"files": ["a"], "weight": 0}}}, "tasks.counterfact.weight"),
        ({"tasks": {"counterfact": None}}, "tasks.counterfact"),
        ({"mixture": "random"}, "mixture"),
        ({"editor": {"encoder": "sentence"}}, "editor"),
        ({"editor": {"sentence_encoder": "some/folder"}}, "editor"),
        ({"optimisation": {"learning_rate": float("nan")}}, "optimisation.learning_rate"),
    ],
)
def test_mistake_is_reported_by_its_place(change: dict[str, Any], place: str) -> None:
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
def test_recipe_that_is_not_a_mapping_is_reported(raw: object) -> None:
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
def test_file_that_is_not_a_recipe_is_reported(
    tmp_path: Path, content: bytes, error: type[Exception], problem: str
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(error, match=problem) as caught:
        load_stages(path)
    assert str(path) in str(caught.value)


def test_missing_recipe_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.yaml: cannot be read: No such file"):
        load_stages(tmp_path / "nowhere.yaml")


def test_yaml_numbers_are_read(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("tasks: [{task: recent, files: [a]}]\noptimisation: {learning_rate: 5e-4, patience: 3}\n")
    [recipe] = load_stages(path)
    assert recipe.optimisation.learning_rate == 5e-4
    assert recipe.optimisation.patience == 3


@pytest.mark.parametrize("name", SHIPPED, ids=lambda name: Path(name).stem)
def test_shipped_recipe_is_valid(name: str) -> None:
    assert all(stage.tasks for stage in load_stages(name))


def test_a_recipe_extends_another(tmp_path: Path) -> None:
    (tmp_path / "whole.yaml").write_text(
        yaml.safe_dump({"tasks": [MIX], "seed": 3, "editor": {"rank": 7, "blocks": 2}})
    )
    (tmp_path / "other.yaml").write_text("extends: whole.yaml\neditor: {rank: 9}\n")
    [recipe] = load_stages(tmp_path / "other.yaml")
    assert (recipe.seed, recipe.editor.rank, recipe.editor.blocks) == (3, 9, 2)
    (tmp_path / "whole.yaml").write_text("extends: other.yaml\n")
    with pytest.raises(RecipeError, match=r"extend each other \(other\.yaml -> whole\.yaml -> other\.yaml\)"):
        load_stages(tmp_path / "other.yaml")
    (tmp_path / "other.yaml").write_text("extends: nowhere.yaml\n")
    with pytest.raises(DataError, match=r"nowhere\.yaml"):
        load_stages(tmp_path / "other.yaml")


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
        ({"trunk_cache": {"memory": INFINITE}}, "trunk_cache.memory"),
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
    assert "strings as keys" in mistakes({"tasks": [MIX], 3: 4})[0]


TASKS = {"counterfact": {"files": ["a"], "weight": 2.0}, "recent": {"files": ["b"]}}


def test_a_stage_overrides_the_one_before() -> None:
    raw = {
        "tasks": TASKS,
        "optimisation": {"steps": 10},
        "stages": [
            {"seed": 1},
            {"tasks": {"recent": {"locality": 3.0}}, "optimisation": {"batch": 4}},
            {"tasks": {"counterfact": {"weight": 1.0}, "forget": {"files": ["c"]}}},
        ],
    }
    first, second, third = parse_stages(raw)
    assert [stage.seed for stage in (first, second, third)] == [1, 1, 1]
    assert [(stage.optimisation.steps, stage.optimisation.batch) for stage in (first, third)] == [(10, 16), (10, 4)]
    assert [(mix.task, mix.weight, mix.locality) for mix in first.tasks] == [
        ("counterfact", 2.0, 1.0),
        ("recent", 1.0, 1.0),
    ]
    assert [(mix.task, mix.weight, mix.locality) for mix in third.tasks] == [
        ("counterfact", 1.0, 1.0),
        ("recent", 1.0, 3.0),
        ("forget", 1.0, 1.0),
    ]


def test_tasks_by_name_are_the_same_as_a_list_and_a_list_replaces_them() -> None:
    as_list = [{"task": name, **entry} for name, entry in TASKS.items()]
    assert parse_recipe({"tasks": TASKS}) == parse_recipe({"tasks": as_list})
    assert merged({"tasks": as_list}, {"tasks": {"recent": {"weight": 3.0}}})["tasks"] == {
        "counterfact": TASKS["counterfact"],
        "recent": {"files": ["b"], "weight": 3.0},
    }
    assert merged({"tasks": TASKS}, {"tasks": [MIX]})["tasks"] == [MIX]


@pytest.mark.parametrize(
    ("stages", "mistake"),
    [
        ([], "stages: expected a list"),
        ("twice", "stages: expected a list"),
        ([{}, None], "stages: expected a list"),
        ([{}, {"editor": {"rank": 3}}], "editor: must be the same in all stages"),
        ([{"editor": {"null_space": 2}}, {"editor": {"null_space": 0}}], "editor: must be the same in all stages"),
        ([{}, {"start_from": "x"}], "start_from: must be the same in all stages"),
        ([{}, {"optimisation": {"steps": 0}}], "optimisation.steps: "),
    ],
    ids=str,
)
def test_mistakes_in_stages_are_reported(stages: object, mistake: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_stages({"tasks": TASKS, "stages": stages})
    assert caught.value.mistakes[0].startswith(mistake)
    assert ("stage 2" in str(caught.value)) == (not mistake.startswith("stages"))


def test_paths_are_relative_to_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "recipe.yaml").write_text(
        "base: ../model\nstart_from: ./old.safetensors\ntasks: {own.yaml: {files: [data.json]}}\n"
        "trunk_cache: {folder: states}\nstages: [{}, {tasks: {own.yaml: {weight: 2}}}]\n"
    )
    (tmp_path / "outer.yaml").write_text("extends: inner/recipe.yaml\nbase: model\n")
    inner, outer = (load_stages(tmp_path / name) for name in ("inner/recipe.yaml", "outer.yaml"))
    for stages in (inner, outer):
        assert Path(stages[0].base).resolve() == tmp_path / "model"
        assert stages[0].start_from == str(tmp_path / "inner" / "old.safetensors")
        assert stages[1].start_from is None
        assert stages[0].trunk_cache.folder == str(tmp_path / "inner" / "states")
        assert [(mix.task, mix.files) for mix in stages[1].tasks] == [
            (str(tmp_path / "inner" / "own.yaml"), ("data.json",))
        ]
    (tmp_path / "hub.yaml").write_text("base: org/model\ntasks: {recent: {files: [a]}}\n")
    assert load_stages(tmp_path / "hub.yaml")[0].base == "org/model"


FACTS = ("counterfact/counterfact-train.json", "wiki_counterfact/train_cf.json")
RECENT = ("wikirecent/recent_train.json", "wiki_counterfact/train_cf.json")


def test_stages_of_the_bundled_editor() -> None:
    """What changes from stage to stage, and nothing else does."""
    stages = load_stages("bundled")
    first = [
        ("counterfact", FACTS, 2.0, 0.7, 0.0, 0.0),
        ("recent", RECENT, 1.5, 4.0, 0.0, 0.7),
        ("convsent", ("convsent/blender_val.json",), 0.8, 5.0, 0.0, 0.0),
        ("this-fact", ("counterfact/counterfact-train.json", "bundled/scope-train.jsonl"), 1.2, 0.7, 0.0, 0.0),
        ("rename", ("counterfact/counterfact-train.json",), 1.2, 1.0, 0.0, 0.0),
        ("aliases", RECENT[::-1], 0.3, 1.0, 0.0, 0.0),
        ("consequences", ("bundled/scope-train.jsonl", *RECENT[::-1]), 1.3, 1.0, 0.0, 0.0),
        ("forget", ("counterfact/counterfact-train.json", "bundled/scope-train.jsonl"), 1.0, 1.0, 0.0, 0.0),
        ("rename-names", ("wiki_counterfact/train_cf.json",), 0.3, 1.0, 0.0, 0.0),
        ("implications", RECENT[::-1], 0.3, 1.0, 0.0, 0.0),
    ]

    def with_numbers(**numbers: tuple[float, float, float]) -> list[tuple[object, ...]]:
        by_name = {name.replace("_", "-"): values for name, values in numbers.items()}
        return [(*mix[:2], *by_name.get(mix[0], mix[2:5]), mix[5]) for mix in first]

    second = {"counterfact": (2.0, 0.8, 0.4), "convsent": (0.8, 6.0, 0.0), "this_fact": (1.2, 0.8, 0.4)}
    expected = [
        first,
        with_numbers(**second, recent=(2.0, 4.0, 0.4)),
        with_numbers(**second, recent=(3.0, 3.0, 0.6), forget=(1.6, 1.0, 0.0)),
    ]
    for stage, tasks in zip(stages, expected, strict=True):
        assert [(m.task, m.files, m.weight, m.locality, m.worst_token, m.recombine) for m in stage.tasks] == tasks
        assert all(mix.records is None for mix in stage.tasks)
    assert schedules(stages) == [
        (2500, 5e-4, 5e-3, 50, 0.5, 500, 250),
        (500, 3e-4, 2e-3, 20, 0.9, 250, 250),
        (400, 2.5e-4, 2e-3, 20, 0.9, 200, 200),
    ]
    assert stages[0].encoder_warmup.steps == 5000
    assert stages[0].objective.propagation_weight == 0.8
    assert_same_but(stages, "tasks", "optimisation")


@pytest.mark.parametrize("name", ["bundled-core", "bundled-mend"])
def test_stages_of_the_smaller_editors(name: str) -> None:
    stages = load_stages(name)
    for stage, locality in zip(stages, (3.0, 4.5), strict=True):
        assert [(m.task, m.files, m.weight, m.locality, m.recombine) for m in stage.tasks] == [
            ("counterfact", FACTS, 1.5, 0.7, 0.0),
            ("recent", RECENT, 1.25, locality, 0.7),
            ("convsent", ("convsent/blender_val.json",), 0.6, 3.0, 0.0),
            ("this-fact", ("counterfact/counterfact-train.json",), 1.0, 0.7, 0.0),
            ("rename", ("counterfact/counterfact-train.json",), 1.0, 1.0, 0.0),
        ]
    assert schedules(stages) == [
        (1100, 5e-4, 5e-3, 50, 0.5, 200, 200),
        (260, 2e-4, 2e-3, 20, 0.9, 130, 130),
    ]
    assert [stage.objective.locality_first_token_weight for stage in stages] == [1.0, 3.0]
    same = [s.model_copy(update={"objective": stages[0].objective}) for s in stages]
    assert stages[0].objective == stages[1].objective.model_copy(update={"locality_first_token_weight": 1.0})
    assert_same_but(same, "tasks", "optimisation")


def schedules(stages: list[Recipe]) -> list[tuple[float, ...]]:
    return [
        (
            opt.steps,
            opt.learning_rate,
            opt.step_size_learning_rate,
            opt.warmup_steps,
            opt.cooldown_fraction,
            opt.validate_every,
            opt.checkpoint_every,
        )
        for opt in (stage.optimisation for stage in stages)
    ]


def assert_same_but(stages: list[Recipe], *fields: str) -> None:
    rest = [stage.model_dump(exclude=set(fields)) for stage in stages]
    assert all(settings == rest[0] for settings in rest)


@pytest.mark.parametrize("name", shipped_editors())
def test_a_shipped_editor_holds_the_last_stage_of_its_recipe(name: str) -> None:
    """Its header is read by this version, and says what the recipe beside it says."""
    header = parse_recipe(training_of(name)["recipe"])
    stage = load_stages(name)[-1]
    assert header.tasks == stage.tasks
    assert header.objective == stage.objective
    assert header.optimisation == stage.optimisation
    assert header.editor == stage.editor
