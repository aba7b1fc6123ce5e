"""Several threads on one model take turns: each gets what it would get alone."""

from __future__ import annotations

import copy
import pickle
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event, Thread

import pytest
import torch
from torch import Tensor

from instructedit.deltas.delta import Delta
from instructedit.editors.mend import Mend
from instructedit.errors import EditorError, ModelError
from instructedit.evaluation.generation import generate
from instructedit.evaluation.scoring import Query, score
from instructedit.merging.combining import make_edit
from instructedit.models.language_model import LanguageModel
from instructedit.models.text import pad
from instructedit.records import EditRequest
from instructedit.tasks.loading import load_task

ROUNDS = 80


@pytest.fixture
def deltas(gpt2: LanguageModel, new_editor: Callable[..., Mend], requests_: list[EditRequest]) -> list[Delta]:
    editor, task = new_editor(gpt2), load_task("counterfact")
    return [make_edit(editor, gpt2, [request], task) for request in requests_[:2]]


def logits(language_model: LanguageModel) -> Tensor:
    queries = [
        language_model.text.encode_pair("Lena was born in", "Oston"),
        language_model.text.encode_pair("Why", "not?"),
    ]
    with torch.no_grad():
        split = language_model.split(1)
        return split.top(split.trunk(pad(queries, language_model.text.pad_id)))


def at_once(work: list[Callable[[], object]]) -> list[object]:
    """Results of functions that all start at the same moment in threads of their own."""
    start = Barrier(len(work))

    def run(function: Callable[[], object]) -> object:
        start.wait()
        return function()

    with ThreadPoolExecutor(len(work)) as pool:
        return list(pool.map(run, work))


def test_two_threads_with_two_deltas_get_what_each_gets_alone(gpt2: LanguageModel, deltas: list[Delta]) -> None:
    def attached(delta: Delta) -> Tensor:
        with delta.attached(gpt2):
            return logits(gpt2)

    alone = [attached(delta) for delta in deltas]
    assert not torch.equal(*alone)

    def rounds(index: int) -> int:
        return sum(torch.equal(attached(deltas[index]), alone[index]) for _ in range(ROUNDS))

    assert at_once([lambda: rounds(0), lambda: rounds(1)]) == [ROUNDS, ROUNDS]


def test_a_thread_without_a_delta_sees_none(gpt2: LanguageModel, deltas: list[Delta]) -> None:
    plain = logits(gpt2)

    def attach() -> None:
        for _ in range(ROUNDS):
            with deltas[0].attached(gpt2):
                logits(gpt2)

    found = at_once([attach, lambda: sum(torch.equal(logits(gpt2), plain) for _ in range(ROUNDS))])
    assert found[1] == ROUNDS


def test_edits_made_in_threads_are_those_made_one_after_another(
    gpt2: LanguageModel, new_editor: Callable[..., Mend], requests_: list[EditRequest]
) -> None:
    editor, task = new_editor(gpt2), load_task("counterfact")
    wanted = [*requests_, requests_[0]]
    serial = [make_edit(editor, gpt2, [request], task) for request in wanted]

    def make(request: EditRequest) -> list[Delta]:
        return [make_edit(editor, gpt2, [request], task) for _ in range(10)]

    for one, many in zip(serial, at_once([lambda request=r: make(request) for r in wanted]), strict=True):  # type: ignore[misc]
        for other in many:  # type: ignore[attr-defined]
            for name, low in one.factors.items():
                assert torch.equal(low.a, other.factors[name].a)
                assert torch.equal(low.b, other.factors[name].b)


def test_scores_and_texts_of_threads_are_those_of_one(gpt2: LanguageModel, deltas: list[Delta]) -> None:
    queries = [Query(0, "Lena was born in", "Oston"), Query(0, "Why", "not?")]

    def texts(delta: Delta | None) -> list[str]:
        return generate(gpt2, ["Lena was born in", "Why"], delta=delta, new_tokens=6)

    expected = [texts(delta) for delta in (None, *deltas)], score(gpt2, 1, queries, None)
    for _ in range(5):
        *found, scored = at_once(
            [*(lambda delta=d: texts(delta) for d in (None, *deltas)), lambda: score(gpt2, 1, queries, None)]  # type: ignore[misc]
        )
        assert (found, scored) == expected


def test_attaching_waits_for_the_other_thread(gpt2: LanguageModel, deltas: list[Delta]) -> None:
    inside, order = Event(), []

    def other() -> None:
        inside.wait(10)
        with deltas[1].attached(gpt2):
            order.append("other")

    thread = Thread(target=other)
    thread.start()
    with deltas[0].attached(gpt2):
        inside.set()
        time.sleep(0.1)
        order.append("first")
    thread.join(10)
    assert order == ["first", "other"]


def test_deltas_nest_in_one_thread(gpt2: LanguageModel, deltas: list[Delta]) -> None:
    plain = logits(gpt2)
    with deltas[0].attached(gpt2), deltas[1].attached(gpt2):
        both = logits(gpt2)
        assert gpt2.attached == 2
    with (deltas[0] + deltas[1]).attached(gpt2):
        torch.testing.assert_close(logits(gpt2), both, rtol=1e-4, atol=1e-4)
    assert gpt2.attached == 0
    assert torch.equal(logits(gpt2), plain)


def test_no_edit_is_made_of_an_edited_model(
    gpt2: LanguageModel, deltas: list[Delta], new_editor: Callable[..., Mend], requests_: list[EditRequest]
) -> None:
    editor, task = new_editor(gpt2), load_task("counterfact")
    with deltas[0].attached(gpt2):
        with pytest.raises(EditorError, match=r"1 delta\(s\) are attached"):
            make_edit(editor, gpt2, requests_[:1], task)
        with pytest.raises(EditorError, match=r"1 delta\(s\) are attached"):
            editor.edit(gpt2, requests_[:1], [None])
    assert make_edit(editor, gpt2, requests_[:1], task).factors


def test_a_model_is_not_copied_while_it_is_edited(gpt2: LanguageModel, deltas: list[Delta]) -> None:
    with deltas[0].attached(gpt2), pytest.raises(ModelError, match="cannot be copied while a delta is attached"):
        copy.deepcopy(gpt2)
    other = copy.deepcopy(gpt2)
    assert other.lock is not gpt2.lock
    assert other.model is not gpt2.model
    assert other.fingerprint == gpt2.fingerprint
    assert torch.equal(logits(other), logits(gpt2))
    assert torch.equal(logits(pickle.loads(pickle.dumps(other))), logits(gpt2))
    with deltas[0].attached(other):
        assert not torch.equal(logits(other), logits(gpt2))
