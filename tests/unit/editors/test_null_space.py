"""Edits that keep what other subjects see, and the choice of these subjects."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from instructedit.editors.instructedit import InstructEdit, InstructEditConfig
from instructedit.editors.mend import Mend, MendConfig
from instructedit.editors.null_space import RIDGE, towards_null_space
from instructedit.editors.similar_subjects import SimilarSubjects, known_subjects
from instructedit.models.language_model import LanguageModel
from instructedit.models.text import pad
from instructedit.records import EditRequest

REQUEST = EditRequest(subject="Lena", prompt="Lena was born in", target="Oston")


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Two edits of three tokens, inputs of width 16, five keys of other subjects; the second edit has two of them."""
    torch.manual_seed(0)
    a, own, others = torch.randn(2, 16, 3), torch.randn(2, 3, 16), torch.randn(2, 5, 16)
    others[1, 2:] = 0
    return a, own, others


def test_it_solves_the_ridge_problem(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    a, own, others = batch
    moved = towards_null_space(a, own, others, torch.ones(2))
    for edit in range(2):
        rows = torch.cat((others[edit], own[edit]))
        x = rows / rows.norm(dim=-1, keepdim=True).clamp(min=1e-9)
        targets = torch.cat((torch.zeros(5, 3), x[5:] @ a[edit]))
        # The minimum of |a' - a|^2 + |X a' - targets|^2 / RIDGE, by its normal equation.
        system = torch.eye(16) + x.T @ x / RIDGE
        expected = torch.linalg.solve(system, a[edit] + x.T @ targets / RIDGE)
        torch.testing.assert_close(moved[edit], expected, atol=1e-4, rtol=1e-4)


def test_other_subjects_get_little_and_the_edit_itself_nearly_all(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    a, own, others = batch
    moved = towards_null_space(a, own, others, torch.ones(2))
    assert (others @ moved).norm() < 0.2 * (others @ a).norm()
    assert (own @ (moved - a)).norm() < 0.2 * (own @ a).norm()


def test_strength_zero_and_edits_without_keys_change_nothing(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    a, own, others = batch
    torch.testing.assert_close(towards_null_space(a, own, others, torch.zeros(2)), a)
    torch.testing.assert_close(towards_null_space(a, own, torch.zeros(2, 5, 16), torch.ones(2)), a)


def test_padding_of_keys_changes_nothing(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    a, own, others = batch
    longer = torch.cat((others, torch.zeros(2, 4, 16)), dim=1)
    strength = torch.full((2,), 0.7)
    torch.testing.assert_close(
        towards_null_space(a, own, longer, strength), towards_null_space(a, own, others, strength)
    )


@pytest.mark.parametrize("make", [Mend.create, InstructEdit.create], ids=["mend", "instructedit"])
def test_an_edit_changes_less_for_a_similar_subject(make: Callable[..., Mend], gpt2: LanguageModel) -> None:
    config = MendConfig if make == Mend.create else InstructEditConfig
    editor = make(config(blocks=2, rank=4, null_space=3), gpt2).eval()
    plain = make(config(blocks=2, rank=4), gpt2).eval()
    plain.load_state_dict(editor.state_dict(), strict=False)
    names = SimilarSubjects(gpt2).nearest("Lena", 3)
    prompt = REQUEST.prompt.replace("Lena", names[0])

    def change(text: str, editor: Mend) -> float:
        query = pad([gpt2.text.encode_pair(text, "Oston")], gpt2.text.pad_id)
        with torch.no_grad():
            before = gpt2.split(0).full(query)
            with editor.edit(gpt2, [REQUEST], [None]).attached(gpt2, torch.tensor([0])):
                return float((gpt2.split(0).full(query) - before).norm())

    with torch.no_grad():
        for each in (editor, plain):
            each.log_lr.fill_(-4.0)
    kept = change(prompt, editor) / change(REQUEST.prompt, editor)
    assert kept < 0.6 * change(prompt, plain) / change(REQUEST.prompt, plain)


def test_an_edit_does_not_depend_on_the_others_of_its_batch(gpt2: LanguageModel) -> None:
    editor = Mend.create(MendConfig(blocks=2, rank=4, contrast=True, null_space=2), gpt2).eval()
    unnamed = EditRequest(prompt="Who was born in Oston, and when was that?", target="Lena")
    longer = EditRequest(subject="Ada Brandt", prompt="The town in which Ada Brandt lives is", target="Weil")
    together = editor.edit(gpt2, [REQUEST, unnamed, longer], [None] * 3)
    for index, request in enumerate((REQUEST, unnamed, longer)):
        alone = editor.edit(gpt2, [request], [None])
        for name, factor in together.factors.items():
            own = alone.factors[name]
            products = [f.tensors["a"][i] @ f.tensors["b"][i] for f, i in ((factor, index), (own, 0))]
            torch.testing.assert_close(*products, atol=1e-6, rtol=1e-3)


def test_the_instruction_moves_the_null_space(gpt2: LanguageModel) -> None:
    config = InstructEditConfig(blocks=1, rank=4, null_space=2, embedding_dim=8)
    editor = InstructEdit.create(config, gpt2).eval()
    assert editor.null_space_condition is not None
    torch.nn.init.normal_(editor.null_space_condition.weight)
    rho = editor.null_spaces(torch.eye(2, 8))
    assert rho is not None
    assert rho.shape == (2, len(editor.matrices))
    assert (rho[0] - rho[1]).abs().min() > 1e-4


def test_known_subjects_are_of_all_relations_and_distinct() -> None:
    names = known_subjects()
    assert len(set(names)) == len(names) > 1000


def test_similar_subjects_never_name_the_subject_itself(gpt2: LanguageModel) -> None:
    similar = SimilarSubjects(gpt2, ["Lena", "Lena Meyer", "len", "Ada", "Kurt", "Weil"])
    assert set(similar.nearest("lena", 10)) == {"Ada", "Kurt", "Weil"}
    assert similar.nearest("lena", 1) == similar.nearest("lena", 3)[:1]
