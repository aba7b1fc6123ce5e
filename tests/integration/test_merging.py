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
from instructedit.editors.lookup import find_editor
from instructedit.editors.mend import Mend
from instructedit.errors import DeltaError
from instructedit.evaluation.generation import begins_with, generate
from instructedit.merging.normal_equation import merge, stack
from instructedit.models.language_model import LanguageModel
from instructedit.models.text import pad
from instructedit.records import EditRequest

SENTENCES = 40


def deltas_of(model: LanguageModel, editor: Mend, requests: Sequence[EditRequest]) -> list[Delta]:
    batch = editor.edit(model, requests, [None] * len(requests))
    about = {"base": model.fingerprint, "architecture": model.architecture, "sketch": model.sketch, "editor": "mend"}
    return [batch.select(index, DeltaMetadata(**about, requests=(request,))) for index, request in enumerate(requests)]


def texts_of(requests: Sequence[EditRequest]) -> list[list[tuple[str, str]]]:
    return [[(request.prompt, request.target)] for request in requests]


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


@pytest.mark.xdist_group("bundled")
def test_twenty_five_edits_hold_where_their_sum_is_lost() -> None:
    base = load_language_model("bundled")
    editor = find_editor("bundled", base)
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
