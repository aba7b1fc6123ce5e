"""Inputs of the edited matrices with another subject in the prompt."""

from __future__ import annotations

import pytest
import torch

from instructedit.editors.contrast import (
    OTHER_SUBJECT,
    OtherInputs,
    matching_tokens,
    other_inputs,
    with_other_subject,
)
from instructedit.editors.gradient import chosen_matrices
from instructedit.editors.instructedit import InstructEdit, InstructEditConfig
from instructedit.editors.mend import Mend, MendConfig
from instructedit.models.inputs import read_inputs
from instructedit.models.language_model import LanguageModel
from instructedit.models.text import Encoded, pad
from instructedit.records import EditRequest

REQUEST = EditRequest(subject="Lena", prompt="Lena was born in", target="Oston")


def test_every_mention_of_the_subject_is_replaced() -> None:
    assert with_other_subject("Lena? Lena was", "Lena") == f"{OTHER_SUBJECT}? {OTHER_SUBJECT} was"
    assert with_other_subject("She was born in", "Lena") is None
    assert with_other_subject("She was born in", None) is None
    assert with_other_subject(f"{OTHER_SUBJECT} was born in", OTHER_SUBJECT) is None


@pytest.mark.parametrize(
    ("edit", "other", "matching"),
    [
        ([1, 5, 2, 3], [1, 6, 7, 2, 3], [0, -1, 3, 4]),  # a longer subject
        ([1, 5, 6, 2], [1, 7, 2], [0, -1, -1, 2]),  # a shorter one
        ([5, 2, 3], [6, 2, 3], [-1, 1, 2]),  # at the beginning
        ([1, 2, 5], [1, 2, 6], [0, 1, -1]),  # at the end
        ([1, 2, 1], [1, 2, 2, 1], [0, 1, 3]),  # a token belongs to the beginning or to the end, not to both
        ([1, 2], [1, 2], [0, 1]),
        ([1], [2], [-1]),
    ],
)
def test_tokens_match_from_both_ends(edit: list[int], other: list[int], matching: list[int]) -> None:
    assert matching_tokens(edit, other) == matching


def test_other_inputs_are_those_of_the_other_prompt(gpt2: LanguageModel) -> None:
    matrices = chosen_matrices(gpt2, MendConfig(blocks=2))
    prompts = ["Lena was born in", "Who?"]
    edits = [gpt2.text.encode_pair(prompt, "Oston") for prompt in prompts]
    other = gpt2.text.encode_pair("Maria Keller was born in", "Oston")

    def read(edits: list[Encoded], others: list[Encoded | None], texts: list[Encoded]) -> OtherInputs:
        inputs = read_inputs(gpt2, pad(texts, gpt2.text.pad_id), [matrix.name for matrix in matrices])
        return other_inputs(inputs, edits, others)

    found = read(edits, [other, None], [other, edits[1]])
    alone = read([other], [other], [other])
    for matrix in matrices:
        states, own = found[matrix.name], alone[matrix.name][0]
        torch.testing.assert_close(states[0, len(edits[0].ids) - 1], own[len(other.ids) - 1])
        assert not states[0, 0].any(), "the subject's token has none"
        assert not states[1].any(), "an edit without a subject has none"


def test_an_edit_without_a_contrast_equals_one_without_a_subject(gpt2: LanguageModel) -> None:
    editor = Mend.create(MendConfig(blocks=2, rank=4, contrast=True), gpt2).eval()
    assert editor.contrast_logit is not None
    unnamed = REQUEST.model_copy(update={"subject": None})
    contrasted, plain = (editor.edit(gpt2, [request], [None]).norms() for request in (REQUEST, unnamed))
    assert (contrasted - plain).abs() > 1e-6
    with torch.no_grad():
        editor.contrast_logit.fill_(-torch.inf)  # kappa = 0
    torch.testing.assert_close(editor.edit(gpt2, [REQUEST], [None]).norms(), plain)


def test_the_instruction_moves_the_contrast(gpt2: LanguageModel) -> None:
    config = InstructEditConfig(blocks=1, rank=4, contrast=True, embedding_dim=8)
    editor = InstructEdit.create(config, gpt2).eval()
    embeddings = torch.eye(2, 8)
    kappa = editor.contrasts(embeddings)
    assert kappa is not None
    assert kappa.shape == (2, len(editor.matrices))
    torch.testing.assert_close(kappa, torch.full_like(kappa, 2.0).sigmoid())
    assert editor.contrast_condition is not None
    torch.nn.init.normal_(editor.contrast_condition.weight)
    first, second = editor.contrasts(embeddings)  # type: ignore[misc]
    assert (first - second).abs().min() > 1e-4
