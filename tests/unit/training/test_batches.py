"""Examples as a recipe draws them."""

from __future__ import annotations

import random

import pytest

from instructedit.models.language_model import LanguageModel
from instructedit.records import EditRequest
from instructedit.training import batches
from instructedit.training.batches import draw_examples
from instructedit.training.mixture import Example
from instructedit.training.recipe import parse_recipe


def test_a_share_of_the_edits_does_not_name_its_subject(gpt2: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    request = EditRequest(subject="Lena", prompt="Lena was born in", target="Oston")
    example = Example("counterfact", request, None, (), (), ())
    monkeypatch.setattr(batches, "draw_batch", lambda sources, shares, count, *args: [example] * count)
    raw = {"tasks": {"counterfact": {"files": ["edits.json"]}}, "without_subject": 0.3}
    drawn = draw_examples(parse_recipe(raw), gpt2, [], [], 400, random.Random(0))
    without = [each for each in drawn if each.request.subject is None]
    assert len(without) / len(drawn) == pytest.approx(0.3, abs=0.06)
    assert {each.request.prompt for each in drawn} == {request.prompt}
    assert all(each == example for each in drawn if each.request.subject is not None)
