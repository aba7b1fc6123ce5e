"""The losses of the objective by themselves."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from instructedit.editors.mend import Mend
from instructedit.models.language_model import LanguageModel
from instructedit.records import EditRequest
from instructedit.training.mixture import Example, WeightedTarget
from instructedit.training.objective import compute_loss, loss_and_backward, unlikelihood
from instructedit.training.recipe import Objective


@pytest.mark.parametrize("margin", [0.0, 5.0, 12.0, 25.0])
def test_unlikelihood_is_exact_and_steep_for_answers_known_by_heart(margin: float) -> None:
    logits = torch.zeros(1, 4)
    logits[0, 2] = margin
    logits.requires_grad_()
    loss = unlikelihood(logits, torch.tensor([2]), lambda: logits)
    p = 1 / (1 + 3 * math.exp(-margin))
    assert loss.item() == pytest.approx(-math.log(3) + math.log(3 + math.exp(margin)), rel=1e-5)  # -log(1 - p)
    loss.sum().backward()
    assert logits.grad is not None
    assert logits.grad[0, 2].item() == pytest.approx(p, rel=1e-4)  # flat nowhere: the surer, the steeper


@pytest.mark.parametrize("forgets", [True, False])
def test_queries_of_weight_zero_are_left_out(
    gpt2: LanguageModel, new_editor: Callable[..., Mend], forgets: bool
) -> None:
    """A forgetting task, or one whose every wanted answer has the weight 0."""
    request = EditRequest(prompt="Lena was born in", target="Oston")
    likelihood = (WeightedTarget("Otto was born in", "Oston", 0.0),)
    forgotten = (WeightedTarget(request.prompt, "Teverley", 1.5),) if forgets else ()
    example = Example("own", request, "Task: Edit", likelihood, forgotten, ())
    editor = new_editor(gpt2)
    deltas = editor(gpt2, [request], ["Task: Edit"])
    losses = loss_and_backward(editor, gpt2, deltas, [example], Objective(propagation_weight=0.0))
    assert (losses.total > 0) == forgets
    assert math.isfinite(losses.total)
    assert compute_loss(editor, gpt2, deltas, [example], Objective()).total == pytest.approx(losses.total)
