"""Where two editors' curves are compared, and that a resized editor's edits are resized and nothing else."""

from __future__ import annotations

import pytest
import torch
from matched import compared, compared_at_match, matched, mean, resized

from instructedit.editors.mend import Mend, MendConfig
from instructedit.models.language_model import LanguageModel
from instructedit.records import EditRequest


def scores(*rows: tuple[float, float]) -> dict[str, dict[str, float]]:
    return {
        str(edit): {"reliability": 1.0, "generalization": reach, "locality": kept}
        for edit, (reach, kept) in enumerate(rows)
    }


CURVE = {1.0: scores((1.0, 0.2), (0.8, 0.4)), 0.5: scores((0.6, 0.6), (0.6, 1.0)), 0.25: scores((0.0, 1.0), (0.2, 1.0))}


def test_scores_are_read_where_the_curve_passes_the_locality() -> None:
    found = matched(CURVE, 0.55)  # half-way from 0.3 at factor 1 to 0.8 at factor 0.5
    assert found is not None
    factor, there = found
    assert factor == pytest.approx(0.75)
    assert mean(there, "locality") == pytest.approx(0.55)
    assert [there[edit]["generalization"] for edit in "01"] == pytest.approx([0.8, 0.7])
    difference = compared(scores((1.0, 0.5), (0.9, 0.6)), there)
    assert difference["generalization"]["mean"] == pytest.approx(0.2)
    assert difference["generalization"]["low"] == pytest.approx(0.2)  # every edit differs by as much
    assert difference["locality"]["mean"] == pytest.approx(0.0)


@pytest.mark.parametrize("locality", [0.1, 1.01])
def test_a_locality_that_the_curve_never_has_is_not_matched(locality: float) -> None:
    assert matched(CURVE, locality) is None


def test_a_resized_editor_makes_the_same_edits_larger(gpt2: LanguageModel) -> None:
    editor = Mend.create(MendConfig(blocks=2, rank=4, step_size=0.1), gpt2)
    requests = [EditRequest(prompt="Lena was born in", target="Oston")]
    before = editor.log_lr.clone()
    plain, large = (each.edit(gpt2, requests, [None]) for each in (editor, resized(editor, 1.5)))
    assert torch.equal(editor.log_lr, before)
    for name, low in plain.factors.items():
        torch.testing.assert_close(large.factors[name].dense(), 1.5 * low.dense())


def test_the_match_is_resampled_with_the_edits() -> None:
    found = compared_at_match(scores((1.0, 0.5), (0.9, 0.6)), CURVE, resamples=200)
    assert found["factor"]["mean"] == pytest.approx(0.75)  # where the mean Locality is 0.55
    assert found["factor"]["low"] < found["factor"]["mean"] < found["factor"]["high"]
    assert found["locality"]["mean"] == pytest.approx(0.0)
