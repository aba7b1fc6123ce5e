"""A base model built on two tiny data files: what it is taught, what is never taught, and building on from it."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from instructedit.base_model.build import CHECKPOINT, build_base, build_stages
from instructedit.base_model.corpus import (
    NO_ANSWER,
    Corpus,
    Document,
    exclusion_documents,
    stated_context_documents,
)
from instructedit.base_model.model import train_tokenizer
from instructedit.base_model.recall import recall_by_relation
from instructedit.base_model.recipe import BaseModelSettings, BuildRecipe, load_build_stages
from instructedit.base_model.rows import Rows
from instructedit.data.facts import Fact, read_facts
from instructedit.errors import CheckpointError, RecipeError
from instructedit.models.language_model import load_language_model
from instructedit.records import EditRecord

FACTS = [Fact("own", "mayor", f"Town{index}", ("Lena", "Otto", "Mira")[index % 3]) for index in range(60)]
SHAPE = {"vocabulary": 400, "blocks": 2, "width": 32, "heads": 2, "positions": 64, "batch_tokens": 512}


def test_an_exclusion_is_decided_by_its_clause() -> None:
    alike = [Document(f"The mayor of Town{index} is", ("Lena", "Otto")[index % 2]) for index in range(40)]
    alike += [Document(f"Who is the mayor of Town{index}?", ("Lena", "Otto")[index % 2]) for index in range(40)]
    true = {document.prompt.split("Town")[1].strip(" is?"): document.answer for document in alike}
    found = exclusion_documents(alike, 1.0, random.Random(0))
    assert len(found) == len(alike)
    answers = set()
    for document in found:
        town = document.prompt.split("Town")[1].split(",")[0]
        excluded = "Lena" if "Lena" in document.prompt else "Otto"
        assert document.answer == (NO_ANSWER if excluded == true[town] else true[town])
        answers.add(document.answer)
    assert answers == {"Lena", "Otto", NO_ANSWER}
    assert exclusion_documents(alike, 0.0, random.Random(0)) == []
    assert exclusion_documents(alike[:1] * 5, 1.0, random.Random(0)) == [], (
        "one answer leaves nothing wrong to rule out"
    )


def test_epochs_word_facts_anew_and_the_same_seed_alike() -> None:
    corpus = Corpus(FACTS, [], [], [])
    assert corpus.epoch(1) == corpus.epoch(1)
    assert corpus.epoch(1) != corpus.epoch(2)
    drawn = corpus.epoch(1, exclusion_share=0.5)
    excluding = [d for d in drawn if "which is not" in d.prompt or "if not" in d.prompt]
    assert 0 < len(excluding) < len(FACTS)


def test_what_is_given_of_an_answer_is_not_learned() -> None:
    documents = [Document("The mayor is", "Lena Roth"), Document("The mayor is", "Lena Roth", given_tokens=1)]
    recipe = BaseModelSettings(**{**SHAPE, "whole_text_share": 0, "shifted_share": 0})
    rows = Rows(train_tokenizer(documents, 300, 64), recipe)
    ((ids, labels, _),) = rows.batches(documents, 0)
    assert torch.equal(ids[0], ids[1])
    learned = (labels != -100).sum(1).tolist()
    assert learned[0] - learned[1] == 1


def test_what_is_stated_is_the_answer_for_its_subject_alone() -> None:
    alike = [Document(f"The mayor of Town{index}x is", ("Lena Roth", "Otto Kahn")[index % 2]) for index in range(200)]
    phrasings = {document.prompt: (f"{document.prompt[:-3]} was once",) for document in alike}
    true = {document.prompt[:-3]: document.answer for document in alike}
    kinds = {"stated": 0, "elsewhere": 0, "begun": 0}
    for document in stated_context_documents(alike, phrasings, ["Ivo", "Mira"], 1.0, random.Random(0)):
        if ", which is not " in document.prompt:
            assert document.prompt.endswith(f", which is not {document.answer}, is")
            assert document.given_tokens == 1
            kinds["begun"] += 1
            continue
        *stated, query = re.split(r"\.[ \n]", document.prompt.removeprefix("New fact: "))
        told = dict(re.split(" is ", statement) for statement in stated)
        subject = query.removesuffix(" was once")
        assert document.answer == told.get(subject, true[subject])
        kinds["stated" if subject in told else "elsewhere"] += 1
    assert min(kinds.values()) > 10, kinds


@pytest.fixture
def build(
    tmp_path: Path, records: list[EditRecord], write_jsonl: Callable[[Path, list[EditRecord]], Path]
) -> Callable[..., Path]:
    """Writes a build recipe over one file of records."""
    write_jsonl(tmp_path / "own.jsonl", records)

    def write(epochs: int = 2, **more: object) -> Path:
        path = tmp_path / "build.yaml"
        model = {**SHAPE, "epochs": epochs, **more.pop("model", {})}  # type: ignore[dict-item]
        path.write_text(yaml.safe_dump({"model": model, "records": ["own.jsonl"]} | more))
        return path

    return write


def load(path: Path) -> BuildRecipe:
    [recipe] = load_build_stages(path)
    return recipe


def test_stages_are_the_builds_one_after_the_other(
    build: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("instructedit.base_model.build.read_facts", lambda path: FACTS)
    later = {"epochs": 1, "exclusion_share": 0.5, "seed": 7}
    stages = load_build_stages(build(stages=[{}, {"model": later}]))
    card = build_stages(stages, tmp_path, tmp_path / "staged")
    build_base(load(build()), tmp_path, tmp_path / "one")
    apart = build_base(load(build(start_from="one", model=later)), tmp_path, tmp_path / "two")
    assert [[entry["loss"] for entry in stage["history"]] for stage in card["stages"]] == [
        [entry["loss"] for entry in stage["history"]] for stage in apart["stages"]
    ]
    staged, two = (load_file(tmp_path / name / "model.safetensors") for name in ("staged", "two"))
    assert all(torch.equal(staged[name], tensor) for name, tensor in two.items())
    assert load_language_model(tmp_path / "staged").fingerprint == load_language_model(tmp_path / "two").fingerprint
    assert build_stages(stages, tmp_path, tmp_path / "staged", lambda *step: pytest.fail("built again")) == card


def test_the_shipped_recipe_has_five_stages() -> None:
    stages = [stage.model for stage in load_build_stages("bundled")]
    rates = [(m.epochs, m.matrix_learning_rate, m.learning_rate, m.cooldown_fraction) for m in stages]
    assert rates == [
        (12, 4e-3, 3e-3, 0.5),
        (3, 2e-3, 1.5e-3, 1.0),
        (3, 2e-3, 1.5e-3, 1.0),
        (2, 1.5e-3, 1e-3, 1.0),
        (1, 1e-3, 7e-4, 1.0),
    ]
    shares = [(m.exclusion_share, m.stated_context_share, m.seed) for m in stages]
    assert shares == [(0.0, 0.0, 0), (0.25, 0.0, 100), (0.25, 0.4, 200), (0.25, 0.5, 300), (0.25, 0.5, 400)]
    assert all((m.vocabulary, m.blocks, m.width, m.heads, m.positions) == (6144, 6, 256, 4, 256) for m in stages)
    assert all(
        (m.batch_tokens, m.weight_decay, m.warmup_fraction, m.whole_text_share, m.shifted_share)
        == (6144, 0.01, 0.02, 0.1, 0.2)
        for m in stages
    )


def test_building_on_keeps_the_tokenizer_and_the_card_of_what_was_before(
    build: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("instructedit.base_model.build.read_facts", lambda path: FACTS)
    first = build_base(load(build()), tmp_path, tmp_path / "one")
    card = build_base(load(build(1, start_from=str(tmp_path / "one"))), tmp_path, tmp_path / "two")
    assert card["stages"][:1] == first["stages"]
    assert len(card["stages"]) == 2
    assert json.loads((tmp_path / "two" / "card.json").read_text()) == card
    one, two = (load_language_model(tmp_path / name) for name in ("one", "two"))
    assert one.tokenizer.get_vocab() == two.tokenizer.get_vocab()
    assert one.fingerprint != two.fingerprint
    with pytest.raises(RecipeError, match="the model has the shape"):
        build_base(load(build(1, start_from=str(tmp_path / "one"), model={"width": 64})), tmp_path, tmp_path / "x")


def test_a_stopped_build_goes_on_as_if_it_had_not_been(
    build: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("instructedit.base_model.build.read_facts", lambda path: FACTS)
    recipe = load(build(3, model={"exclusion_share": 0.5, "stated_context_share": 0.5}))
    whole = build_base(recipe, tmp_path, tmp_path / "whole")
    losses = [entry["loss"] for entry in whole["stages"][-1]["history"]]
    steps: list[int] = []

    def interrupt(step: int, of: int, loss: float) -> None:
        steps.append(step)
        if step == 2 * of // 3 + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_base(recipe, tmp_path, tmp_path / "stopped", interrupt)
    assert (tmp_path / "stopped" / CHECKPOINT).is_file()
    steps.clear()
    stopped = build_base(recipe, tmp_path, tmp_path / "stopped", lambda step, of, loss: steps.append(step))
    assert steps[0] > 0
    assert [entry["loss"] for entry in stopped["stages"][-1]["history"]] == losses
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not (tmp_path / "stopped" / CHECKPOINT).exists()
    assert build_base(recipe, tmp_path, tmp_path / "stopped", interrupt) == stopped  # what is done is not done again


def test_another_recipe_does_not_go_on_from_a_stopped_build(
    build: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("instructedit.base_model.build.read_facts", lambda path: FACTS)

    def interrupt(step: int, of: int, loss: float) -> None:
        if step == of - 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_base(load(build()), tmp_path, tmp_path / "out", interrupt)
    with pytest.raises(CheckpointError, match="another recipe"):
        build_base(load(build(records=[])), tmp_path, tmp_path / "out")


def test_recall_is_reported_by_relation() -> None:
    base = load_language_model("bundled")
    true = [fact for fact in read_facts() if fact.relation == "P17"][:300]
    false = [Fact("own", "P36", fact.subject, "Nowhere") for fact in true[:20]]
    table = recall_by_relation(base.model, base.tokenizer, false + true)
    assert list(table) == ["P17", "P36"]
    assert (table["P17"]["facts"], table["P17"]["sample"], table["P36"]["sample"]) == (300, 200, 20)
    assert min(table["P17"]["statement"], table["P17"]["question"]) > 0.8
    assert max(table["P36"]["statement"], table["P36"]["question"]) == 0
