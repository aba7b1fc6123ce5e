"""The losses of the objective by themselves."""

from __future__ import annotations

import math

import pytest
import torch

from instructedit.training.objective import unlikelihood


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
