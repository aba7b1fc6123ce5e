"""Methods that need no training, all through the one interface, on tiny random models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from instructedit.deltas.delta import DeltaBatch
from instructedit.editors.base import Editor
from instructedit.editors.calinet import CaliNet, CaliNetConfig
from instructedit.editors.ft import ConstrainedFineTuning, FtConfig
from instructedit.editors.grace import Codebooks, Grace, GraceConfig
from instructedit.editors.key_statistics import regularised_covariance
from instructedit.editors.lookup import load_editor
from instructedit.editors.memit import Memit, MemitConfig
from instructedit.editors.registry import registered_editors
from instructedit.editors.rome import Rome, RomeConfig, times_weight
from instructedit.editors.signals import edit_loss
from instructedit.editors.subject_activations import SubjectActivations, subject_token
from instructedit.errors import DataError, EditorError
from instructedit.evaluation.generation import generate
from instructedit.evaluation.protocols import Protocol
from instructedit.evaluation.runner import evaluate
from instructedit.evaluation.scoring import Query, score
from instructedit.merging.combining import make_edit
from instructedit.models.language_model import LanguageModel
from instructedit.models.text import pad
from instructedit.records import EditRecord, EditRequest
from instructedit.tasks.loading import load_task

METHODS = sorted(name for name, summary in registered_editors().items() if not summary.needs_training)
WEIGHT_METHODS = sorted(set(METHODS) - {"in-context", "grace", "calinet"})
every_method = pytest.mark.parametrize("method", METHODS)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSTRUCTEDIT_CACHE", str(tmp_path / "cache"))


def editor_for(method: str, language_model: LanguageModel, tmp_path: Path) -> Editor:
    """A method as a user would say it; ROME with numbers for a random model, whose keys are all alike."""
    path = tmp_path / f"{method}.yaml"
    rome = "sentences: 60\nlearning_rate: 0.1\ndecay: 0.0\nprefixes: ['']\nclamp_norm_factor: 2.0\n"
    if method == "memit":
        rome += "blocks: 2\nmom2_update_weight: 1.0\n"
    path.write_text(f"name: {method}\n" + (rome if method in ("rome", "memit") else ""))
    return load_editor(path, language_model)


def loss_of(language_model: LanguageModel, editor: Editor, requests: list[EditRequest]) -> tuple[Tensor, Tensor]:
    """Loss of the targets before and after."""
    edits = editor.edit(language_model, requests, [None] * len(requests))
    queries = [Query(index, r.prompt, r.target) for index, r in enumerate(requests)]
    return tuple(
        torch.tensor([-s.log_likelihood for s in score(language_model, editor.split_layer, queries, which)])
        for which in (None, edits)
    )  # type: ignore[return-value]


#: With a window of 8 tokens, subjects from which the answer can be seen.
NEAR = [
    EditRequest(prompt="Lena was born in", target="Oston", subject="Lena"),
    EditRequest(prompt="Maravel lies on", target="the North", subject="Maravel"),
    EditRequest(prompt="Otto likes", target="old garden gnomes", subject="Otto"),
]
WINDOWED = ("mistral", "gemma2")


def test_the_methods_of_the_paper_are_there() -> None:
    assert {"calinet", "ft", "grace", "in-context", "lora", "memit", "rome"} <= set(METHODS)


@every_method
def test_the_model_is_as_it_was_and_targets_are_likelier(
    method: str, family: str, any_model: LanguageModel, requests_: list[EditRequest], tmp_path: Path
) -> None:
    requests = NEAR if family in WINDOWED else requests_
    weights = {name: p.detach().clone() for name, p in any_model.model.named_parameters()}
    before, after = loss_of(any_model, editor_for(method, any_model, tmp_path), requests)
    for name, parameter in any_model.model.named_parameters():
        assert torch.equal(parameter, weights[name])
        assert parameter.grad is None
    if method != "in-context":  # a random model does not read its context
        assert (after < before).all()


@pytest.mark.parametrize("method", WEIGHT_METHODS)
def test_a_batch_is_what_single_edits_are(
    method: str, gpt2: LanguageModel, requests_: list[EditRequest], tmp_path: Path
) -> None:
    editor = editor_for(method, gpt2, tmp_path)
    together = editor.edit(gpt2, requests_, [None] * 3)
    assert isinstance(together, DeltaBatch)
    for index, request in enumerate(requests_):
        alone = editor.edit(gpt2, [request], [None])
        assert isinstance(alone, DeltaBatch)
        for name, factor in together.factors.items():
            ours, theirs = factor.select(index).dense(), alone.factors[name].select(0).dense()
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@every_method
@pytest.mark.parametrize("protocol", list(Protocol))
def test_every_method_is_evaluated(
    method: str, protocol: Protocol, gpt2: LanguageModel, records: list[EditRecord], tmp_path: Path
) -> None:
    found = evaluate(editor_for(method, gpt2, tmp_path), gpt2, load_task("counterfact"), records[:3], protocol=protocol)
    assert {"reliability", "generalization", "locality"} <= found.metrics.keys()


def test_the_box_holds(gpt2: LanguageModel, requests_: list[EditRequest]) -> None:
    editor = ConstrainedFineTuning.create(FtConfig(bound=1e-3, steps=10), gpt2)
    edits = editor.edit(gpt2, requests_, [None] * 3)
    (change,) = (factor.change for factor in edits.factors.values())
    assert change.abs().max() == pytest.approx(1e-3)


def test_an_edit_that_is_done_no_longer_moves(gpt2: LanguageModel, requests_: list[EditRequest]) -> None:
    editor = ConstrainedFineTuning.create(FtConfig(loss_threshold=1e6), gpt2)
    edits = editor.edit(gpt2, requests_, [None] * 3)
    assert all(factor.change.abs().max() == 0 for factor in edits.factors.values())


def test_rome_stores_the_value_under_the_key(gpt2: LanguageModel, requests_: list[EditRequest]) -> None:
    """k* (W + D) = v*, and D moves another key k by (k C^-1 k*) / (k* C^-1 k*) of that."""
    editor = Rome.create(RomeConfig(sentences=60), gpt2)
    activations = SubjectActivations(gpt2, requests_, editor.config, editor.split_layer)
    name = editor.matrix.name
    keys, new = activations.keys(name), activations.outputs(name) + activations.optimal_shift(name)
    old = times_weight(gpt2.model.get_submodule(name), keys)
    low = editor.edit(gpt2, requests_, [None] * 3).factors[name]
    moved = torch.einsum("ei,eir,ero->eo", keys, low.a, low.b)
    torch.testing.assert_close(old + moved, new, rtol=1e-3, atol=1e-4)
    assert (new - old).norm(dim=-1).min() > 1e-3
    covariance = regularised_covariance(gpt2, name, editor.config.sentences, editor.config.ridge)
    direction = torch.linalg.solve(covariance, keys[0])
    other = keys[1] @ low.a[0] @ low.b[0]
    share = (keys[1] @ direction) / (keys[0] @ direction)
    torch.testing.assert_close(other, share * (new - old)[0], rtol=1e-3, atol=1e-4)


def test_memit_brings_the_stream_to_where_it_is_wanted(gpt2: LanguageModel, requests_: list[EditRequest]) -> None:
    """With little weight on the text's keys the blocks together make the whole shift, each an equal share."""
    config = MemitConfig(sentences=60, blocks=2, block=2, mom2_update_weight=1e-6, prefixes=("",), learning_rate=0.1)
    editor = Memit.create(config, gpt2)
    activations = SubjectActivations(gpt2, requests_, config, editor.split_layer)
    top = gpt2.structure.blocks[2]
    wanted = activations.outputs(top) + activations.optimal_shift(editor.matrices[-1].name)
    edits = editor.edit(gpt2, requests_, [None] * 3)
    torch.testing.assert_close(activations.outputs(top, edits), wanted, rtol=1e-2, atol=1e-2)
    assert set(edits.factors) == {matrix.name for matrix in editor.matrices}
    first = editor.matrices[0].name
    share = edits.factors[first].b[:, 0]
    torch.testing.assert_close(share, (wanted - activations.outputs(top)) / 2, rtol=1e-3, atol=1e-4)


FAR = EditRequest(prompt="The harbour of Maravel lies on the coast of", target="the North", subject="Maravel")


@pytest.mark.parametrize("method", ["rome", "memit"])
def test_a_subject_beyond_the_attention_window_is_refused(
    method: str, tiny: Callable[[str], LanguageModel], tmp_path: Path
) -> None:
    """Nothing that is written at the subject reaches the answer, so there is no direction to go in."""
    windowed = tiny("mistral")
    path = tmp_path / "far.yaml"
    path.write_text(f"name: {method}\nblock: 2\nsentences: 60\nprefixes: ['']\n" + "blocks: 2\n" * (method == "memit"))
    editor = load_editor(path, windowed)
    message = r"request 2 of 2: a change at .*'Maravel' in block 2 does not affect .*Choose a lower"
    with pytest.raises(EditorError, match=message):
        editor.edit(windowed, [NEAR[0], FAR], [None, None])


def test_an_edit_in_the_last_block_before_the_answer_is_refused(any_model: LanguageModel) -> None:
    editor = Rome.create(RomeConfig(block=3, sentences=60), any_model)
    with pytest.raises(EditorError, match=r"'Maravel' in block 3 does not affect"):
        editor.edit(any_model, [FAR], [None])


def test_rome_finds_the_subject(gpt2: LanguageModel) -> None:
    request = EditRequest(prompt="The harbour of Maravel lies", target="there", subject="Maravel")
    place = subject_token(gpt2, request.prompt, request)
    ids = gpt2.text.encode_prompt(request.prompt).ids
    assert gpt2.tokenizer.decode(ids[: place + 1]).endswith("Maravel")
    with pytest.raises(EditorError, match="subject that occurs in the prompt"):
        subject_token(gpt2, "It lies", request)


def test_statistics_are_kept_and_remade(gpt2: LanguageModel, requests_: list[EditRequest], tmp_path: Path) -> None:
    editor = Rome.create(RomeConfig(sentences=60), gpt2)
    first = editor.edit(gpt2, requests_[:1], [None])
    (file,) = (tmp_path / "cache" / "keys").iterdir()
    file.write_bytes(b"damaged")
    second = editor.edit(gpt2, requests_[:1], [None])
    for name, low in first.factors.items():
        torch.testing.assert_close(second.factors[name].a, low.a)


def test_grace_answers_by_its_codebook_near_the_key_and_nowhere_else(
    gpt2: LanguageModel, requests_: list[EditRequest]
) -> None:
    editor = Grace.create(GraceConfig(radius=1e-3), gpt2)
    edits = editor.edit(gpt2, requests_, [None] * 3)
    others = [Query(0, "Otto likes", "rivers"), Query(1, "Lena was born in", "Oston")]
    assert score(gpt2, editor.split_layer, others, edits) == score(gpt2, editor.split_layer, others, None)
    (answer,) = generate(gpt2, [requests_[0].prompt], edits=edits, rows=[0], new_tokens=4)
    assert answer.startswith(" Oston")
    wide = Codebooks(edits.module, edits.keys, edits.values, 1e6)
    assert score(gpt2, editor.split_layer, others, wide) != score(gpt2, editor.split_layer, others, None)


def test_calinet_adds_its_slots_to_the_mlps_output(gpt2: LanguageModel, requests_: list[EditRequest]) -> None:
    editor = CaliNet.create(CaliNetConfig(slots=5), gpt2)
    edits = editor.edit(gpt2, requests_, [None] * 3)
    mlp = gpt2.model.get_submodule(edits.first.rpartition(".")[0])
    x = torch.randn(2, 4, gpt2.structure.hidden)
    with torch.no_grad():
        plain = mlp(x)
        with edits.attached(gpt2, torch.tensor([2, 0])):
            edited = mlp(x)
    for row, edit in enumerate((2, 0)):
        added = nn.functional.gelu(x[row] @ edits.keys[edit]) @ edits.values[edit]
        torch.testing.assert_close(edited[row] - plain[row], added, rtol=1e-4, atol=1e-4)
        assert added.abs().max() > 1e-3
    alone = editor.edit(gpt2, requests_[1:2], [None])
    torch.testing.assert_close(alone.values[0], edits.values[1], rtol=1e-3, atol=1e-4)


def test_in_context_puts_the_fact_before_the_question(gpt2: LanguageModel, requests_: list[EditRequest]) -> None:
    editor = load_editor("in-context", gpt2)
    edits = editor.edit(gpt2, requests_, [None] * 3)
    assert edits.rewrite_prompt(0, "Where?") == "New fact: Lena was born in Oston.\nWhere?"
    by_hand = generate(gpt2, [edits.rewrite_prompt(1, "Why")], new_tokens=5)
    assert generate(gpt2, ["Why"], edits=edits, rows=[1], new_tokens=5) == by_hand
    with pytest.raises(EditorError, match="does not change weights"):
        make_edit(editor, gpt2, requests_[:1], load_task("counterfact"))


@pytest.mark.parametrize("method", WEIGHT_METHODS)
def test_an_edit_becomes_a_delta(
    method: str, gpt2: LanguageModel, requests_: list[EditRequest], tmp_path: Path
) -> None:
    delta = make_edit(editor_for(method, gpt2, tmp_path), gpt2, requests_[:1], load_task("counterfact"))
    batch = pad([gpt2.text.encode_pair(requests_[0].prompt, requests_[0].target)], gpt2.text.pad_id)
    with torch.no_grad():
        before = edit_loss(gpt2.split(0).full(batch), batch)
        with delta.attached(gpt2):
            after = edit_loss(gpt2.split(0).full(batch), batch)
    assert after < before
    assert delta.metadata.editor == method


def test_wrong_numbers_are_named(gpt2: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "ft.yaml"
    path.write_text("name: ft\nstep: 3\nbound: -1\n")
    with pytest.raises(EditorError, match=r"step: .*bound: |bound: .*step: "):
        load_editor(path, gpt2)
    path.write_text("- ft\n")
    with pytest.raises(EditorError, match="top level"):
        load_editor(path, gpt2)
    with pytest.raises(DataError, match="cannot be read"):
        load_editor(tmp_path / "none.yaml", gpt2)
    with pytest.raises(EditorError, match="block 9"):
        Rome.create(RomeConfig(block=9), gpt2)
