"""The shipped tasks and their instruction templates, a user's task file, and the grammar of scopes."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest
import yaml

from instructedit.errors import DataError
from instructedit.instructions.grammar import KINDS, Grammar, parts_of, scope_grammar
from instructedit.instructions.templates import SPLITS, Split, held_out_templates
from instructedit.records import EditRecord, EditRequest, Probe, ProbeKind
from instructedit.tasks.edits import fitting_records
from instructedit.tasks.loading import load_task, shipped_tasks
from instructedit.tasks.task import Task

NAMES = (
    "aliases",
    "consequences",
    "convsent",
    "counterfact",
    "forget",
    "implications",
    "inverse",
    "recent",
    "rename",
    "rename-and-on",
    "rename-names",
    "this-fact",
    "this-name",
    "zsre",
)
SCOPES_WITH_HELD_OUT_TEMPLATES = {"only", "everywhere", "aliases", "this-name", "inverse", "consequences", "forget"}
REQUEST = EditRequest(prompt="How are gnomes?", target="Lovely.", subject="garden gnomes", label="positive")
OWN_TASK = {
    "name": "recipes",
    "summary": "change an ingredient",
    "in_scope": ["request", "rephrase"],
    "out_of_scope": ["unrelated"],
    "instructions": {
        "name": "Recipe",
        "templates": ["Change one ingredient."],
        "held_out_templates": ["Swap [TOPIC] alone."],
    },
}
every_task = pytest.mark.parametrize("name", NAMES)


def write_task(folder: Path, raw: object) -> Path:
    path = folder / "recipes.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path


def test_these_tasks_ship() -> None:
    assert tuple(shipped_tasks()) == NAMES
    assert {name for name, task in shipped_tasks().items() if task.held_out} == {"zsre", "rename-and-on"}
    assert {name for name, task in shipped_tasks().items() if task.renames} == {
        "rename",
        "rename-and-on",
        "rename-names",
    }


@every_task
def test_task_has_ten_templates_of_one_line(name: str) -> None:
    task = load_task(name)
    templates = task.instructions.all_templates
    assert len(set(templates)) == 10
    assert len(task.instructions.held_out_templates) == 1
    assert all("\n" not in text and text.strip() == text for text in templates)
    assert task.summary
    assert task.out_of_scope


@every_task
def test_instructions_are_rendered_whole(name: str) -> None:
    instructions = load_task(name).instructions
    for description in instructions.all_templates:
        head, body = instructions.render(description, REQUEST).split("\n")
        assert head == f"Task: {instructions.name}"
        assert body.startswith("Description: ")
        assert "[" not in body


@every_task
def test_opposite_is_a_task(name: str) -> None:
    task = load_task(name)
    if task.opposite is None:
        assert name == "convsent"
        return
    opposite = load_task(task.opposite)
    changes, stays = task.deciding_kinds(opposite)
    assert changes or stays or task.forgets != opposite.forgets or not (set(task.out_of_scope) & {ProbeKind.NEIGHBOUR})


def test_convsent_fills_label_and_topic() -> None:
    instructions = load_task("convsent").instructions
    assert all("garden gnomes" in instructions.render(text, REQUEST) for text in instructions.all_templates)
    assert all("positive" in instructions.render(text, REQUEST) for text in instructions.all_templates)


@pytest.mark.parametrize(
    ("missing", "placeholder"), [({"label": None}, r"\[LABEL\]"), ({"subject": None}, r"\[TOPIC\]")]
)
def test_unfilled_placeholder_is_an_error(missing: dict[str, None], placeholder: str) -> None:
    instructions = load_task("convsent").instructions
    with pytest.raises(DataError, match=placeholder):
        instructions.render_held_out(REQUEST.model_copy(update=missing))
    with pytest.raises(DataError, match="field instruction"):
        instructions.render_held_out(None)


@every_task
def test_training_never_draws_the_held_out_template(name: str) -> None:
    instructions = load_task(name).instructions
    unseen = instructions.render_held_out(REQUEST)
    rng = random.Random(0)
    drawn = {instructions.draw_for_training(REQUEST, rng, 0.0) for _ in range(200)}
    assert len(drawn) == 9
    assert unseen not in drawn
    assert unseen not in {instructions.draw_for_training(REQUEST, rng, 1.0) for _ in range(200)}


def test_most_templates_of_the_grammar_stand_behind_a_neutral_name() -> None:
    instructions = load_task("this-fact").instructions
    rng = random.Random(0)
    heads = [instructions.draw_for_training(REQUEST, rng, 1.0).split("\n")[0] for _ in range(400)]
    assert set(heads) == {"Task: Edit", f"Task: {instructions.name}"}
    assert 200 < heads.count("Task: Edit") < 380


def test_users_task_is_a_yaml_file(tmp_path: Path) -> None:
    task = load_task(write_task(tmp_path, OWN_TASK))
    assert task.out_of_scope == (ProbeKind.UNRELATED,)
    assert task.instructions.render_held_out(REQUEST) == "Task: Recipe\nDescription: Swap garden gnomes alone."
    drawn = task.instructions.draw_for_training(REQUEST, random.Random(0), 0.5)
    assert drawn == "Task: Recipe\nDescription: Change one ingredient."


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"out_of_scope": ["nothing"]}, "out_of_scope.0"),
        ({"instructions": {"name": "Recipe", "templates": ["only one"]}}, "instructions.held_out_templates"),
        (
            {"instructions": {"name": "Recipe", "templates": ["a\nb"], "held_out_templates": ["c"]}},
            "instructions.templates.0",
        ),
        (
            {"instructions": {"name": "Recipe", "templates": ["a"], "held_out_templates": ["c\n"]}},
            "instructions.held_out_templates.0",
        ),
        ({"in_scope": ["everything"]}, "in_scope.0"),
        ({"columns": {"prompt": "question"}}, "columns.target"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_wrong_task_file_is_reported_by_its_place(tmp_path: Path, change: dict[str, object], place: str) -> None:
    path = write_task(tmp_path, OWN_TASK | change)
    with pytest.raises(DataError) as caught:
        load_task(path)
    assert f"{place}: " in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"just a line",
        b"name: [",
        b"",
        pytest.param(
            b"\xff\xfe\x00",
        ),
    ],
)
def test_file_that_is_not_a_task_is_reported(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "recipes.yaml"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"recipes\.yaml"):
        load_task(path)


def test_missing_task_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        load_task(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("wrong", "right"), [("counterfacts", "counterfact"), ("this_fact", "this-fact"), ("zsrE", "zsre")]
)
def test_nearest_name_is_suggested(wrong: str, right: str) -> None:
    with pytest.raises(DataError, match=f"Did you mean '{right}'"):
        load_task(wrong)


def test_unknown_name_lists_the_tasks() -> None:
    with pytest.raises(DataError, match="Known: " + ", ".join(NAMES)):
        load_task("qqqq")


@pytest.mark.parametrize("scope", ["only", "everywhere", "tone", "aliases + inverse"])
def test_grammar_expands_fully_and_repeatably(scope: str) -> None:
    grammar = scope_grammar()
    rng, again = random.Random(1), random.Random(1)
    drawn = [grammar.draw(scope, rng) for _ in range(500)]
    assert drawn == [grammar.draw(scope, again) for _ in range(500)]
    assert len(set(drawn)) > 250
    assert not [text for text in drawn if "{" in text or "}" in text or "\n" in text or not text.strip()]


@pytest.mark.parametrize("scope", ["only", "everywhere", "tone"])
def test_every_frame_of_the_grammar_can_be_filled(scope: str) -> None:
    grammar = scope_grammar()
    for frame in grammar.frames[scope]:
        alone = Grammar(grammar.slots, {scope: [frame]}, {})
        assert "{" not in alone.draw(scope, random.Random(0))


def test_grammar_reports_what_is_missing() -> None:
    grammar = Grammar({"a": ["x"]}, {"only": ["{a} and {b}"]}, {})
    with pytest.raises(DataError, match="no scope 'all'"):
        grammar.draw("all", random.Random(0))
    with pytest.raises(DataError, match="no slot 'b'"):
        grammar.draw("only", random.Random(0))


def test_every_scope_of_a_task_is_in_the_grammar() -> None:
    scopes = {part for task in shipped_tasks().values() for part in parts_of(task.instructions.scope or "only")}
    assert scopes <= set(scope_grammar().scopes)


def test_two_scopes_are_described_one_after_the_other() -> None:
    texts = {"names": ["All names."], "back": ["Backwards."]}
    rng = random.Random(0)
    one_of_each = {"All names. Backwards.", "Backwards. All names."}
    grammar = Grammar({}, {}, texts)
    assert {grammar.draw("names + back", rng) for _ in range(20)} == one_of_each
    with_both = Grammar({}, {}, texts | {"names + back": ["Names, and backwards."]})
    assert {with_both.draw("names + back", rng) for _ in range(40)} == {*one_of_each, "Names, and backwards."}


def test_kinds_of_templates_are_drawn_by_their_share() -> None:
    grammar = Grammar({}, {}, {"only": ["This one."]}, {"only": {"short": ["It."], "foreign": ["Kun her."]}})
    rng = random.Random(0)
    assert {grammar.draw("only", rng) for _ in range(50)} == {"This one."}
    drawn = [grammar.draw("only", rng, kinds=0.5) for _ in range(400)]
    assert drawn.count("This one.") / 400 == pytest.approx(0.5, abs=0.08)
    assert drawn.count("It.") / 400 == pytest.approx(0.25, abs=0.08)


def test_kinds_of_templates_are_many_and_state_one_scope_each() -> None:
    texts = [normalised(text) for kinds in scope_grammar().kinds.values() for own in kinds.values() for text in own]
    assert len(texts) == len(set(texts))
    for scope in ("only", "everywhere"):
        assert {kind: len(own) >= 40 for kind, own in scope_grammar().kinds[scope].items()} == dict.fromkeys(
            KINDS, True
        )


def test_a_pair_of_scopes_is_held_out() -> None:
    """No training may see the two scopes of the held-out task in one text; it sees each of them, and other pairs."""
    trained = [task.instructions.scope for task in shipped_tasks().values() if not task.held_out]
    held_out = load_task("rename-and-on").instructions.scope
    assert held_out not in trained
    assert held_out not in scope_grammar().texts
    assert {*parts_of(held_out or "")} <= {*trained}
    assert any("+" in (scope or "") for scope in trained)


def record_with(*kinds: ProbeKind, old: str | None = "Oston") -> EditRecord:
    request = EditRequest(prompt="Lena was born in", target="Maravel", subject="Lena", ground_truth=old)
    probes = tuple(Probe(kind=kind, prompt=f"{kind}?", answers=("yes",)) for kind in kinds)
    return EditRecord(record_id="lena", request=request, probes=probes)


def test_a_record_fits_what_it_can_judge() -> None:
    named, whole = record_with(ProbeKind.SUBJECT_ALIAS), record_with(ProbeKind.SUBJECT_ALIAS, ProbeKind.REASONING)
    assert load_task("aliases").fits(named)
    assert not load_task("implications").fits(named)
    assert load_task("implications").fits(whole)
    assert load_task("forget").fits(record_with())
    assert not load_task("forget").fits(record_with(old=None))
    assert fitting_records(load_task("aliases"), [record_with(), named], "x.json") == [named]
    with pytest.raises(
        DataError, match=r"x\.json: no record has the fields that task implications needs \(reasoning, subject_alias"
    ):
        fitting_records(load_task("implications"), [named], "x.json")


@pytest.mark.parametrize(
    ("name", "against", "changes", "stays"),
    [
        ("rename", "this-fact", ["neighbour"], []),
        ("this-fact", "rename", [], ["neighbour"]),
        ("this-fact", "consequences", [], ["reasoning"]),
        ("implications", "this-name", ["reasoning", "subject_alias"], []),
        ("this-name", "aliases", [], ["subject_alias"]),
    ],
)
def test_what_decides_between_two_scopes(name: str, against: str, changes: list[str], stays: list[str]) -> None:
    assert load_task(name).deciding_kinds(load_task(against)) == (tuple(changes), tuple(stays))


def normalised(text: str) -> str:
    return " ".join(text.casefold().split()).strip(".!")


def training_texts() -> set[str]:
    """Every text that any training may have drawn or shown."""
    texts = [text for task in shipped_tasks().values() for text in task.instructions.all_templates]
    texts += [text for scope in scope_grammar().texts.values() for text in scope]
    texts += [text for kinds in scope_grammar().kinds.values() for own in kinds.values() for text in own]
    return {normalised(text) for text in texts}


@pytest.mark.parametrize(("split", "least"), [("test", 36), ("validation", 24)])
def test_held_out_templates_are_many_and_new(split: Split, least: int) -> None:
    by_scope = held_out_templates(split)
    pairs = {"everywhere + consequences"} | ({"aliases + consequences"} if split == "test" else set())
    assert by_scope.keys() == SCOPES_WITH_HELD_OUT_TEMPLATES | pairs
    for texts in by_scope.values():
        assert len({normalised(text) for text in texts}) == len(texts) >= least
        assert not {normalised(text) for text in texts} & training_texts()


@pytest.mark.parametrize("split", ["negated", "short", "foreign", "misspelt"])
def test_both_scopes_have_further_templates_of_each_kind(split: Split) -> None:
    by_scope = held_out_templates(split)
    assert by_scope.keys() == {"only", "everywhere"}
    assert {len(texts) for texts in by_scope.values()} == {12}
    assert not {normalised(text) for texts in by_scope.values() for text in texts} & training_texts()


def test_held_out_templates_have_one_split_and_one_scope() -> None:
    texts = [normalised(text) for split in SPLITS for scope in held_out_templates(split).values() for text in scope]
    assert len(texts) == len(set(texts))


#: SHA-256, its first 16 digits, of 500 draws of every scope: training repeats only where these stay.
DRAWS = {
    "aliases": "e4665fa4f2725d91",
    "aliases + consequences": "f1e8cf7480b9e1bf",
    "consequences": "08e594145c721d45",
    "everywhere": "fb99247509c970a1",
    "everywhere + aliases": "2e88839a76b083a3",
    "forget": "e4072a7afa105da8",
    "inverse": "e133d051a65ab859",
    "only": "b780267b3d7525c5",
    "this-name": "30688a326c9c490b",
    "tone": "eb607f852f8e2038",
    "aliases + inverse": "bd87c15f920e2ea9",
    "everywhere + consequences": "bb55a8a74f41480e",
}


@pytest.mark.parametrize("scope", [*scope_grammar().scopes, "aliases + inverse", "everywhere + consequences"])
def test_draws_of_the_grammar_stay_the_same(scope: str) -> None:
    rng = random.Random(f"seed-{scope}")
    drawn = [scope_grammar().draw(scope, rng) for _ in range(500)]
    assert hashlib.sha256("\n".join(drawn).encode()).hexdigest()[:16] == DRAWS[scope]


def test_tasks_cannot_be_changed() -> None:
    task: Task = load_task("zsre")
    with pytest.raises(ValueError, match="frozen"):
        task.name = "other"
