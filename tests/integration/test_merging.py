"""Many edits as one delta."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from instructedit import load_language_model, load_task, make_edit
from instructedit.data.locations import BUNDLED_EDITS
from instructedit.data.readers import read_records
from instructedit.deltas.delta import Delta, DeltaMetadata
from instructedit.deltas.factors import Dense
from instructedit.editors.key_statistics import second_moments
from instructedit.editors.lookup import load_editor
from instructedit.editors.mend import Mend
from instructedit.editors.ordinary_text import written_texts
from instructedit.errors import DeltaError
from instructedit.evaluation.generation import begins_with, generate
from instructedit.merging.combining import combine_edits
from instructedit.merging.distillation import Distribution, distil
from instructedit.merging.normal_equation import merge
from instructedit.merging.stacking import Text, stack
from instructedit.merging.texts import Counts
from instructedit.merging.texts import texts_of as chosen_texts
from instructedit.models.language_model import LanguageModel
from instructedit.models.text import Encoded, pad
from instructedit.records import EditRequest

SENTENCES = 40


def deltas_of(model: LanguageModel, editor: Mend, requests: Sequence[EditRequest]) -> list[Delta]:
    batch = editor.edit(model, requests, [None] * len(requests))
    about = {"base": model.fingerprint, "architecture": model.architecture, "sketch": model.sketch, "editor": "mend"}
    return [batch.select(index, DeltaMetadata(**about, requests=(request,))) for index, request in enumerate(requests)]


def texts_of(requests: Sequence[EditRequest]) -> list[list[Text]]:
    return [[Text(request.prompt, request.target)] for request in requests]


@torch.no_grad()
def logits(model: LanguageModel, delta: Delta, requests: Sequence[EditRequest]) -> torch.Tensor:
    batch = pad([model.text.encode_pair(r.prompt, r.target) for r in requests], model.text.pad_id)
    with delta.attached(model):
        return model.split(0).full(batch)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_edit_alone_stays_what_it_is(
    tiny: Callable[[str], LanguageModel], new_editor: Callable[..., Mend], requests_: list[EditRequest], family: str
) -> None:
    model = tiny(family)
    [delta] = deltas_of(model, new_editor(model, blocks=2), requests_[:1])
    merged = merge([delta], texts_of(requests_[:1]), model, preserve=1e-6, sentences=SENTENCES)
    plain = logits(model, Delta({}, delta.metadata), requests_[:1])
    wanted = logits(model, delta, requests_[:1])
    assert (wanted - plain).abs().max() > 1e-3
    torch.testing.assert_close(logits(model, merged, requests_[:1]), wanted, rtol=0.05, atol=0.02)


def test_the_order_does_not_matter_and_the_size_does_not_grow(
    gpt2: LanguageModel, new_editor: Callable[..., Mend], requests_: list[EditRequest]
) -> None:
    deltas, texts = deltas_of(gpt2, new_editor(gpt2, blocks=2), requests_), texts_of(requests_)
    forward = merge(deltas, texts, gpt2, sentences=SENTENCES)
    backward = merge(deltas[::-1], texts[::-1], gpt2, sentences=SENTENCES)
    assert forward.factors.keys() == backward.factors.keys() == deltas[0].factors.keys()
    for name, factor in forward.factors.items():
        assert factor.shape == deltas[0].factors[name].shape
        torch.testing.assert_close(factor.dense(), backward.factors[name].dense(), rtol=1e-2, atol=1e-4)
    assert forward.metadata.requests == tuple(requests_)


def test_more_preservation_changes_less(
    gpt2: LanguageModel, new_editor: Callable[..., Mend], requests_: list[EditRequest]
) -> None:
    deltas, texts = deltas_of(gpt2, new_editor(gpt2, blocks=1), requests_), texts_of(requests_)
    moments = second_moments(gpt2, list(deltas[0].factors), SENTENCES)
    [name] = [
        name for name in moments if name.endswith("c_fc")
    ]  # the lower matrix: its keys do not depend on the other

    def change_of_ordinary_text(preserve: float) -> float:
        change = merge(deltas, texts, gpt2, preserve=preserve, sentences=SENTENCES).factors[name].dense()
        return (change.mT @ moments[name] @ change).trace().item()  # E|k D|^2

    changes = [change_of_ordinary_text(preserve) for preserve in (0.1, 10.0, 1000.0)]
    assert changes[0] > changes[1] > changes[2] > 0


def test_an_edit_of_other_matrices_is_merged_as_well(
    gpt2: LanguageModel, new_editor: Callable[..., Mend], requests_: list[EditRequest]
) -> None:
    first = deltas_of(gpt2, new_editor(gpt2, blocks=1), requests_[:1])
    second = deltas_of(gpt2, new_editor(gpt2, blocks=2), requests_[1:2])
    merged = merge([*first, *second], texts_of(requests_[:2]), gpt2, sentences=SENTENCES)
    assert merged.factors.keys() == first[0].factors.keys() | second[0].factors.keys()
    stacked = stack([*first, *second], list(second[0].factors))
    unchanged = next(name for name in second[0].factors if name not in first[0].factors)
    assert not stacked.factors[unchanged].dense()[0].any(), "the first edit leaves this matrix as it is"


def test_no_edits_are_refused(
    gpt2: LanguageModel, new_editor: Callable[..., Mend], requests_: list[EditRequest]
) -> None:
    with pytest.raises(DeltaError, match="no edits to merge"):
        merge([], [], gpt2)


def test_dense_changes_are_merged_as_well(
    gpt2: LanguageModel, new_editor: Callable[..., Mend], requests_: list[EditRequest]
) -> None:
    low, texts = deltas_of(gpt2, new_editor(gpt2, blocks=1), requests_), texts_of(requests_)
    dense = [Delta({n: Dense(f.dense()) for n, f in delta.factors.items()}, delta.metadata) for delta in low]
    found, wanted = (merge(deltas, texts, gpt2, sentences=SENTENCES) for deltas in (dense, low))
    torch.testing.assert_close(logits(gpt2, found, requests_), logits(gpt2, wanted, requests_), rtol=0.02, atol=0.05)


def test_a_distribution_tells_its_most_likely_tokens_apart() -> None:
    before, after = torch.randn(2, 5, 300, generator=torch.Generator().manual_seed(0)) * 4
    taught = Distribution.of(before)
    whole = (before.softmax(-1) * (before.log_softmax(-1) - after.log_softmax(-1))).sum(-1)
    found = taught.divergence(after)
    torch.testing.assert_close(taught.divergence(before), torch.zeros(5), atol=1e-5, rtol=0)
    assert (found > 0).all()
    assert (found <= whole + 1e-4).all()
    few = Distribution.of(before[:, :100])  # all tokens but one are told apart
    exact = before[:, :100].softmax(-1) * (before[:, :100].log_softmax(-1) - after[:, :100].log_softmax(-1))
    torch.testing.assert_close(few.divergence(after[:, :100]), exact.sum(-1), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def apart(model: LanguageModel, taught: Delta, learned: Delta, queries: Sequence[Encoded]) -> float:
    """Mean divergence of the next token."""
    batch = pad(queries, model.text.pad_id)
    with taught.attached(model):
        wanted = Distribution.of(model.split(0).full(batch))
    with learned.attached(model):
        return wanted.divergence(model.split(0).full(batch)).mean().item()


def test_distillation_comes_closer_to_each_edit_alone_and_keeps_ordinary_text(
    gpt2: LanguageModel, new_editor: Callable[..., Mend], requests_: list[EditRequest]
) -> None:
    deltas, texts = deltas_of(gpt2, new_editor(gpt2, blocks=2), requests_), texts_of(requests_)
    merged = merge(deltas, texts, gpt2, sentences=SENTENCES)
    steps: list[tuple[int, int]] = []
    taught = distil(merged, deltas, texts, gpt2, keep=0, on_step=lambda step, of, loss: steps.append((step, of)))
    assert taught.factors.keys() == merged.factors.keys()
    assert taught.metadata == merged.metadata
    assert [step for step, _ in steps] == list(range(1, steps[0][1] + 1))

    def from_alone(delta: Delta) -> float:
        each = [
            apart(gpt2, alone, delta, [gpt2.text.encode_pair(request.prompt, request.target)])
            for request, alone in zip(requests_, deltas, strict=True)
        ]
        return sum(each) / len(each)

    assert from_alone(taught) < 0.5 * from_alone(merged)
    low = merged.compress(2)
    taught_low = distil(low, deltas, texts, gpt2, keep=0)
    assert {factor.rank for factor in taught_low.factors.values()} == {2}
    assert taught_low.metadata.compression_error is None, "of a change that was trained on nothing can be said"
    assert from_alone(taught_low) < from_alone(low)

    base, ordinary = Delta({}, merged.metadata), written_texts(gpt2, seed=1)  # not those of the training
    kept = distil(merged, deltas, texts, gpt2, keep=100)
    assert apart(gpt2, base, kept, ordinary) < 0.8 * apart(gpt2, base, taught, ordinary)


def test_distillation_is_the_same_every_time_and_leaves_the_model_as_it_is(
    gpt2: LanguageModel, new_editor: Callable[..., Mend], requests_: list[EditRequest]
) -> None:
    deltas = deltas_of(gpt2, new_editor(gpt2, blocks=1), requests_)
    before = {name: weight.clone() for name, weight in gpt2.model.state_dict().items()}
    first, second = (
        combine_edits("distil", deltas, requests_, [r.target for r in requests_], gpt2).tensors for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(weight, before[name]) for name, weight in gpt2.model.state_dict().items())
    assert all(parameter.grad is None for parameter in gpt2.model.parameters())


def test_distillation_takes_no_more_steps_than_it_may(
    gpt2: LanguageModel, new_editor: Callable[..., Mend], requests_: list[EditRequest]
) -> None:
    deltas = deltas_of(gpt2, new_editor(gpt2, blocks=1), requests_)
    answers, steps = [request.target for request in requests_], set()
    combine_edits(
        "distil", deltas, requests_, answers, gpt2, most_steps=3,
        on_step=lambda step, of, what: steps.add((step, of)) if what.startswith("distilling") else None,
    )  # fmt: skip
    assert steps == {(1, 3), (2, 3), (3, 3)}


def test_texts_of_an_edit_are_its_prompt_and_others_with_its_answer(
    gpt2: LanguageModel, new_editor: Callable[..., Mend], requests_: list[EditRequest]
) -> None:
    requests = [requests_[0], requests_[1].model_copy(update={"subject": None})]
    deltas, answers = deltas_of(gpt2, new_editor(gpt2, blocks=1), requests), [r.target for r in requests]
    counts = Counts(others=2, prefixed=1, templates=3, prefixed_templates=1)
    with_subject, without = chosen_texts(deltas, requests, answers, gpt2, counts)
    assert [len(with_subject), len(without)] == [1 + 2 + 1 + 3 + 1, 1 + 1]
    assert with_subject[0] == Text(requests[0].prompt, requests[0].target)
    subject = requests[0].subject or ""
    others, templates = ([text.prompt for text in part] for part in (with_subject[1:3], with_subject[4:7]))
    assert all(subject not in text for text in others)
    assert all(subject in text for text in templates)
    alone = chosen_texts(deltas[:1], requests[:1], answers[:1], gpt2, counts)
    assert alone[0][:4] == with_subject[:4], "an edit's sentences do not depend on the other edits"

    def loss(prompt: str) -> float:
        batch = pad([gpt2.text.encode_pair(prompt, requests[0].target)], gpt2.text.pad_id)
        with torch.no_grad(), deltas[0].attached(gpt2):
            return (
                torch.nn.functional.cross_entropy(gpt2.split(0).full(batch), batch.labels, reduction="none")
                .max()
                .item()
            )

    losses = [loss(text) for text in templates]
    assert losses == sorted(losses), "best first"


def test_what_an_edit_changes_after_few_similar_subjects_is_kept(
    gpt2: LanguageModel, new_editor: Callable[..., Mend], requests_: list[EditRequest]
) -> None:
    [delta] = deltas_of(gpt2, new_editor(gpt2, blocks=1), requests_[:1])
    counts = Counts(others=4, prefixed=1, templates=1, prefixed_templates=0)

    def kept(scale: float) -> list[bool]:
        [texts] = chosen_texts([delta.scale(scale)], requests_[:1], [requests_[0].target], gpt2, counts)
        assert not any(text.kept for text in (texts[0], *texts[5:])), "only texts about other subjects"
        return [text.kept for text in texts[1:5]]

    assert kept(1e-3) == [True] * 4
    assert kept(1e5) == [False] * 4


@pytest.mark.parametrize("distilled", [False, True])
def test_kept_texts_stay_as_the_base_model_has_them(
    gpt2: LanguageModel, new_editor: Callable[..., Mend], requests_: list[EditRequest], distilled: bool
) -> None:
    edited, other = requests_[:2]
    deltas = deltas_of(gpt2, new_editor(gpt2, blocks=1), [edited])

    def moved(kept: bool) -> float:
        texts = [[*texts_of([edited])[0], Text(other.prompt, other.target, kept)]]
        change = merge(deltas, texts, gpt2, preserve=1e-3, ridge=1e-3, own_weight=1.0, sentences=SENTENCES)
        change = distil(change, deltas, texts, gpt2, keep=0) if distilled else change
        nothing = Delta({}, change.metadata)
        return (logits(gpt2, change, [other]) - logits(gpt2, nothing, [other])).norm().item()

    assert moved(kept=True) < 0.5 * moved(kept=False)


@pytest.mark.xdist_group("bundled")
def test_twenty_five_edits_hold_where_their_sum_is_lost() -> None:
    base = load_language_model("bundled")
    editor = load_editor("bundled", base)
    requests = [record.request for record in read_records(BUNDLED_EDITS / "counterfact.jsonl")[:25]]
    task = load_task("counterfact")
    deltas = [make_edit(editor, base, [request], task) for request in requests]

    def held(delta: Delta) -> int:
        answers = generate(base, [request.prompt for request in requests], delta=delta, new_tokens=8)
        return sum(begins_with(answer, [r.target]) for answer, r in zip(answers, requests, strict=True))

    total = deltas[0]
    for delta in deltas[1:]:
        total = total + delta
    merged = merge(deltas, texts_of(requests), base, preserve=0.3, sentences=300)
    assert held(total) < 15
    assert held(merged) >= 23
