"""Noise on the instructions of training: other names, and texts that say nothing."""

from __future__ import annotations

import random

import pytest

from instructedit.instructions.templates import NEUTRAL_NAME, unrelated_texts
from instructedit.tasks.loading import load_task
from instructedit.training.instruction_noise import (
    misspelt,
    silent_instruction,
    with_name_noise,
    with_noise,
    with_text_noise,
)
from instructedit.training.recipe import InstructionNoise

INSTRUCTION = "Task: Rename everywhere\nDescription: Whoever had the old object has the new one."
DRAWS = 400


def test_without_noise_nothing_is_drawn() -> None:
    rng = random.Random(0)
    before = rng.getstate()
    for name in ("counterfact", "rename"):
        assert with_noise(INSTRUCTION, load_task(name), InstructionNoise(), rng) == INSTRUCTION
    assert rng.getstate() == before


def test_the_name_is_exchanged_and_the_description_stays() -> None:
    noise, rng = InstructionNoise(name=0.5), random.Random(0)
    drawn = [with_name_noise(INSTRUCTION, noise, rng) for _ in range(DRAWS)]
    assert {text.split("\n")[1] for text in drawn} == {INSTRUCTION.split("\n")[1]}
    names = [text.split("\n")[0].removeprefix("Task: ") for text in drawn]
    assert names.count("Rename everywhere") / DRAWS == pytest.approx(0.5, abs=0.1)
    assert NEUTRAL_NAME in names
    assert load_task("this-fact").instructions.name in names, "names that contradict the description are among them"
    assert load_task("zsre").instructions.name not in names, "held-out tasks stay unseen"
    assert all(name and "\n" not in name for name in names)


def test_tasks_that_need_no_instruction_at_times_get_a_silent_one_or_none() -> None:
    noise, rng = InstructionNoise(silent=0.4, missing=0.25), random.Random(0)
    drawn = [with_noise(INSTRUCTION, load_task("counterfact"), noise, rng) for _ in range(DRAWS)]
    missing = drawn.count(None) / DRAWS
    silent = sum(text is not None and text != INSTRUCTION for text in drawn) / DRAWS
    assert missing == pytest.approx(0.1, abs=0.05)
    assert silent == pytest.approx(0.3, abs=0.07)


def test_a_misspelt_instruction_keeps_its_name_and_most_letters() -> None:
    noise, rng = InstructionNoise(misspelt=0.5), random.Random(0)
    drawn = [with_text_noise(INSTRUCTION, noise, rng) for _ in range(DRAWS)]
    other = [text for text in drawn if text != INSTRUCTION]
    assert len(other) / DRAWS == pytest.approx(0.5, abs=0.1)
    head = INSTRUCTION.partition("Whoever")[0]
    assert all(text.startswith(head) and "\n" not in text.removeprefix(head) for text in other)
    assert all(abs(len(text) - len(INSTRUCTION)) < 8 for text in other)


def test_short_words_and_placeholders_are_spelt_right() -> None:
    rng = random.Random(0)
    drawn = {misspelt("Make it [TOPIC] for all", rng) for _ in range(DRAWS)}
    assert len(drawn) > 3
    words = {word.casefold() for text in drawn for word in text.split()}
    assert {"it", "for", "all"} <= words
    assert not words - {"it", "for", "all", "[topic]", "make", "mkae", "mke", "maake"}


def test_a_scope_is_never_left_to_a_silent_text() -> None:
    noise, rng = InstructionNoise(silent=1.0), random.Random(0)
    assert {with_noise(INSTRUCTION, load_task("rename"), noise, rng) for _ in range(50)} == {INSTRUCTION}


def test_a_silent_text_is_an_instruction_that_the_control_does_not_have() -> None:
    rng = random.Random(0)
    for _ in range(DRAWS):
        name, description = silent_instruction(rng).split("\n")
        assert name.startswith("Task: ")
        text = description.removeprefix("Description: ")
        assert text
        assert text not in unrelated_texts()
