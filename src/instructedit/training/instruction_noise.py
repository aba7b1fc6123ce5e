"""Instructions of training that must not be taken for what they are not.

An editor learns shortcuts where it can: the task's name tells the scope as well as the description does, so it reads
the name; a text that is unlike any of training gets an arbitrary embedding, which may cancel the edit. Two kinds of
noise prevent this. A name is exchanged for a neutral, another task's or an invented one while the description stays,
so only the description tells the scope. And a text that says nothing about an edit, or none at all, stands in place of
the instruction of tasks that need none, so it acts as no instruction. A third kind is what people's hands make of a
text: letters exchanged, left out and doubled.
"""

from __future__ import annotations

import random
import string

from instructedit.data.facts import shipped_facts
from instructedit.instructions.templates import NEUTRAL_NAME
from instructedit.tasks.loading import shipped_tasks
from instructedit.tasks.task import Task
from instructedit.training.recipe import InstructionNoise

_PREFIX, _DESCRIPTION = "Task: ", "\nDescription: "
#: Share of misspelt words in a misspelt text, and of such texts without capitals or without a full stop.
_MISSPELT_WORDS, _CARELESS = 0.35, 0.4


def with_noise(instruction: str, task: Task, noise: InstructionNoise, rng: random.Random) -> str | None:
    """Return the instruction that training uses in place of ``instruction``: often the same one, at times None.

    Without noise nothing is drawn, so other draws stay what they are.
    """
    if noise.silent and task.routing is not None and rng.random() < noise.silent:
        return None if rng.random() < noise.missing else silent_instruction(rng)
    return with_text_noise(instruction, noise, rng)


def with_text_noise(instruction: str, noise: InstructionNoise, rng: random.Random) -> str:
    """Return the instruction, at times under another name, at times misspelt."""
    instruction = with_name_noise(instruction, noise, rng)
    if not noise.misspelt or rng.random() >= noise.misspelt:
        return instruction
    head, mark, description = instruction.partition(_DESCRIPTION)
    return head + mark + misspelt(description, rng)


def misspelt(text: str, rng: random.Random) -> str:
    """Return the text with a third of its longer words misspelt, at times without capitals or its last full stop."""
    text = " ".join(_misspelt_word(word, rng) if rng.random() < _MISSPELT_WORDS else word for word in text.split(" "))
    text = text.lower() if rng.random() < _CARELESS else text
    return text.rstrip(".") if rng.random() < _CARELESS else text


def _misspelt_word(word: str, rng: random.Random) -> str:
    """Return the word with two letters exchanged, one left out or one doubled; the first and last letters stay."""
    if len(word) < 4 or not word.isalpha():  # placeholders stay whole, too
        return word
    at = rng.randrange(1, len(word) - 2) if len(word) > 4 else 1
    before, letter, after = word[:at], word[at], word[at + 1 :]
    return rng.choice((before + after[0] + letter + after[1:], before + after, before + letter + letter + after))


def with_name_noise(instruction: str, noise: InstructionNoise, rng: random.Random) -> str:
    """Return the instruction, at times under another name."""
    if not noise.name or rng.random() >= noise.name:
        return instruction
    _, _, description = instruction.partition("\n")
    return f"{_PREFIX}{_other_name(rng)}\n{description}"


def silent_instruction(rng: random.Random) -> str:
    """Return an instruction whose description says nothing about an edit: a fact, or letters without a meaning."""
    if rng.random() < 0.5:
        facts = rng.sample(shipped_facts(), rng.randint(1, 3))
        text = " ".join(fact.sentence(rng) for fact in facts)
    else:
        text = " ".join(_letters(rng) for _ in range(rng.randint(2, 20)))
    return f"{_PREFIX}{_other_name(rng)}\nDescription: {text}"


def _other_name(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.4:
        return NEUTRAL_NAME
    if kind < 0.8:
        return rng.choice([task.instructions.name for task in shipped_tasks().values() if not task.held_out])
    return _letters(rng).capitalize()


def _letters(rng: random.Random) -> str:
    return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 10)))
