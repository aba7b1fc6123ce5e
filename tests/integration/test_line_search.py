"""The line search for step sizes: the smallest multiple with which an edit holds, or the trained size."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from instructedit.deltas.delta import DeltaBatch
from instructedit.editors.ft import ConstrainedFineTuning
from instructedit.editors.line_search import CONTEXTS, ENOUGH, MULTIPLES, with_smallest_steps
from instructedit.editors.mend import Mend, MendConfig
from instructedit.evaluation.scoring import Query, score
from instructedit.models.language_model import LanguageModel
from instructedit.records import EditRequest

REQUESTS = [
    EditRequest(prompt="Lena was born in", target="Oston", subject="Lena"),
    EditRequest(prompt="The river Maravel flows into the", target="sea of Tolm", subject="Maravel"),
    EditRequest(prompt="Ben plays the", target="violin", subject="Ben"),
]


@pytest.fixture(scope="module")
def made(gpt2: LanguageModel) -> tuple[DeltaBatch, int]:
    editor = ConstrainedFineTuning.create(ConstrainedFineTuning.Config(steps=60, learning_rate=0.02, bound=0.2), gpt2)
    deltas = editor.edit(gpt2, REQUESTS, [None] * 3)
    assert isinstance(deltas, DeltaBatch)
    return deltas, editor.split_layer


def searched(gpt2: LanguageModel, made: tuple[DeltaBatch, int], probability: float) -> DeltaBatch:
    deltas, split_layer = made
    prompts, targets = [r.prompt for r in REQUESTS], [r.target for r in REQUESTS]
    return with_smallest_steps(gpt2, deltas, prompts, targets, split_layer, probability)


def factors_of(result: DeltaBatch, deltas: DeltaBatch) -> list[float]:
    """By how much each edit was multiplied."""
    [after], [before] = result.factors.values(), deltas.factors.values()
    return [round(float(value), 4) for value in (after.square() / before.square()).sqrt()]


def least_probability(gpt2: LanguageModel, made: tuple[DeltaBatch, int], edit: int, multiple: float) -> float:
    """The smallest probability of a target over the contexts."""
    deltas, split_layer = made
    request = REQUESTS[edit]
    queries = [Query(edit, context + request.prompt, request.target) for context in CONTEXTS]
    scores = score(gpt2, split_layer, queries, deltas.scale(torch.full((3,), multiple)))
    return min(math.exp(scored.log_likelihood) for scored in scores)


def test_each_edit_gets_the_smallest_multiple_with_which_it_holds(
    gpt2: LanguageModel, made: tuple[DeltaBatch, int]
) -> None:
    by_edit = [[least_probability(gpt2, made, edit, multiple) for multiple in MULTIPLES] for edit in range(3)]
    levels = sorted(reached for row in by_edit for reached in row)
    chosen = set()
    for probability in ((low + high) / 2 for low, high in pairwise(levels)):
        expected = [
            next((m for m, reached in zip(MULTIPLES, row, strict=True) if reached >= probability), None)
            or next(
                m for m, reached in zip(MULTIPLES, row, strict=True) if reached >= ENOUGH * row[MULTIPLES.index(1.0)]
            )
            for row in by_edit
        ]
        assert factors_of(searched(gpt2, made, probability), made[0]) == expected
        chosen |= set(expected)
    assert len(chosen) > 1


def test_an_editor_searches_when_it_edits_and_not_in_training(gpt2: LanguageModel) -> None:
    torch.manual_seed(0)
    config = MendConfig(blocks=2, rank=4, step_size=0.5)
    fixed = Mend.create(config, gpt2).eval()
    searching = Mend.create(config.model_copy(update={"line_search": 1e-9}), gpt2).eval()
    searching.load_state_dict(fixed.state_dict())
    full, small = fixed.edit(gpt2, REQUESTS, [None] * 3), searching.edit(gpt2, REQUESTS, [None] * 3)
    assert torch.allclose(small.norms(), MULTIPLES[0] * full.norms())
    trained = searching(gpt2, REQUESTS, [None] * 3)
    assert torch.allclose(trained.norms(), full.norms())
    assert searching.config.continues(fixed.config)
    assert not searching.config.continues(config.model_copy(update={"rank": 8}))


def test_edits_do_not_depend_on_the_others_of_their_batch(gpt2: LanguageModel) -> None:
    torch.manual_seed(0)
    editor = Mend.create(MendConfig(blocks=2, rank=4, step_size=0.5, line_search=0.001), gpt2).eval()
    together = editor.edit(gpt2, REQUESTS, [None] * 3).norms()
    alone = [float(editor.edit(gpt2, [request], [None]).norms()) for request in REQUESTS]
    assert torch.allclose(together, torch.tensor(alone), rtol=1e-4)
