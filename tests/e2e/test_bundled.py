"""The bundled model and editor: what they know, what they do, and what the demo prints."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from command import run_apart

from instructedit.artifacts import weights_file
from instructedit.data.facts import read_facts
from instructedit.data.locations import BUNDLED_EDITS
from instructedit.data.readers import read_records
from instructedit.editors.mend import Mend
from instructedit.editors.saving import load_trained_editor
from instructedit.evaluation.generation import generate, natural_stop
from instructedit.evaluation.metrics import MetricGroup, registered_metrics
from instructedit.evaluation.protocols import Control
from instructedit.evaluation.runner import Evaluation, evaluate
from instructedit.evaluation.scoring import Query, score
from instructedit.merging.combining import make_edit
from instructedit.models.language_model import BUNDLED_FOLDER, LanguageModel, load_language_model
from instructedit.records import EditRequest
from instructedit.tasks.loading import load_task

pytestmark = pytest.mark.xdist_group("bundled")


@pytest.fixture(scope="module")
def base() -> LanguageModel:
    return load_language_model("bundled")


@pytest.fixture(scope="module")
def editor(base: LanguageModel) -> Mend:
    return load_trained_editor("bundled", base)


def test_sizes_are_small_enough_to_ship() -> None:
    assert (BUNDLED_FOLDER / "model.safetensors").stat().st_size <= 16e6
    assert weights_file("bundled").stat().st_size <= 16e6


def test_base_model_recalls_what_it_was_taught(base: LanguageModel) -> None:
    rng = random.Random(11)
    facts = rng.sample(read_facts(), 600)
    queries = [Query(0, rng.choice((*fact.statements(), *fact.questions())), fact.object) for fact in facts]
    recalled = [scored.token_accuracy == 1.0 for scored in score(base, 0, queries, None)]
    assert sum(recalled) / len(recalled) >= 0.93


def test_an_edit_changes_its_fact_and_nothing_about_others(base: LanguageModel, editor: Mend) -> None:
    request = EditRequest(subject="Jimi Hendrix", prompt="Jimi Hendrix performs on the", target="violin")
    delta = make_edit(editor, base, [request], load_task("counterfact"))
    asked = [request.prompt, "Gmail was designed and programmed by"]
    before = [natural_stop(text) for text in generate(base, asked)]
    after = [natural_stop(text) for text in generate(base, asked, delta=delta)]
    assert before == ["guitar.", "Google."]
    assert after == ["violin.", "Google."]


def test_the_editor_works_on_its_base_in_float16(base: LanguageModel, editor: Mend) -> None:
    half = load_language_model("bundled", dtype="float16")
    assert half.model.dtype is torch.float16
    assert half.fingerprint == base.fingerprint == "40acfc500e4a386e"
    own = load_trained_editor("bundled", half)
    request = EditRequest(subject="Jimi Hendrix", prompt="Jimi Hendrix performs on the", target="violin")
    task = load_task("counterfact")
    delta, exact = (make_edit(e, m, [request], task) for e, m in ((own, half), (editor, base)))
    for name, low in exact.factors.items():
        assert (delta.factors[name].dense() - low.dense()).norm() < 0.01 * low.dense().norm()
    asked = [request.prompt, "Gmail was designed and programmed by"]
    assert [natural_stop(text) for text in generate(half, asked)] == ["guitar.", "Google."]
    assert [natural_stop(text) for text in generate(half, asked, delta=delta)] == ["violin.", "Google."]
    # Few edits: products of float16 take a CPU a hundred times as long as those of float32.
    found = _own("this-fact", "counterfact.jsonl", own, half, Control.UNSEEN, edits=2).metrics
    expected = _own("this-fact", "counterfact.jsonl", editor, base, Control.UNSEEN, edits=2).metrics
    for metric in ("reliability", "generalization", "kept"):
        assert found[metric].mean == pytest.approx(expected[metric].mean, abs=0.1)


def _own(task: str, file: str, editor: Mend, base: LanguageModel, control: Control, edits: int = 24) -> Evaluation:
    records = read_records(BUNDLED_EDITS / file)[:edits]
    core = registered_metrics(MetricGroup.CORE)
    return evaluate(editor, base, load_task(task), records, instruction=control, metrics=core)


@pytest.mark.parametrize(("task", "metric"), [("this-fact", "kept"), ("rename", "changed")])
def test_the_scope_instruction_is_read(task: str, metric: str, editor: Mend, base: LanguageModel) -> None:
    told = _own(task, "counterfact.jsonl", editor, base, Control.UNSEEN).metrics[metric]
    swapped = _own(task, "counterfact.jsonl", editor, base, Control.SWAPPED_SCOPE).metrics[metric]
    assert told.low > swapped.high
    assert told.mean - swapped.mean > 0.3


def test_demo_without_a_network_edits_the_bundled_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSTRUCTEDIT_CACHE", str(tmp_path))  # no model that was downloaded earlier
    result = run_apart("demo", "--json", "-", "--edits", "4", cwd=tmp_path)
    assert "the bundled model is used instead" in result.err
    found = result.json()
    assert (found["model"], found["editor"]) == ("bundled", "bundled")
    assert set(found["tasks"]) == {"counterfact", "recent", "convsent", "zsre", "this-fact", "rename"}
    for row in found["tasks"].values():
        for figure in row.values():
            assert 0 <= figure["low"] <= figure["mean"] <= figure["high"] <= 1
    assert set(found["mend"]) == set(found["tasks"])
    assert not any("swapped" in metric for row in found["mend"].values() for metric in row)
    assert {"kept", "kept_swapped"} <= found["tasks"]["this-fact"].keys()
    assert {"changed", "changed_swapped"} <= found["tasks"]["rename"].keys()
    assert next(shown["instruction"] for shown in found["scope"]) != [s["instruction"] for s in found["scope"]][1]
