"""Spoilt inputs of every class: each succeeds, or is refused in words."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from fuzz.figures import INPUTS, Figures, try_file
from fuzz.targets import TARGETS

#: Inputs a test; an input is known by its class and number, whatever the total.
BLOCK = 100
BLOCKS = [
    (name, start, min(start + BLOCK, count))
    for name, target in TARGETS.items()
    for count in [max(1, round(INPUTS * target.share))]
    for start in range(0, count, BLOCK)
]


@pytest.mark.parametrize(("name", "start", "stop"), BLOCKS)
def test_nothing_forbidden(name: str, start: int, stop: int, record_property: Callable[[str, object], None]) -> None:
    target, figures = TARGETS[name], Figures(name)
    for number in range(start, stop):
        file, content = target.make(random.Random(f"{name}-{number}"))
        figures.add(try_file(file, content, target.use), f"{name}-{number}/{file}", content)
    figures.report(record_property)
    assert not figures.failures, "\n".join(figures.said())
