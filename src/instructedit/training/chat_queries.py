"""Training queries in the base model's chat template, so that an edit holds in a chat as it does in plain text."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from instructedit.training.mixture import Example


def in_chat(
    examples: Sequence[Example], share: float, render: Callable[[str], str], rng: random.Random
) -> list[Example]:
    """Return the examples with a share of their queries, and of their edits, as messages of a chat.

    Each is drawn by itself, so an edit that is made from plain text is queried in the chat and the other way round.

    Args:
        examples: the examples.
        share: of the queries; without any nothing is drawn.
        render: puts a prompt into the chat template.
        rng: source of the draws.
    """
    if not share:
        return list(examples)

    def drawn(prompt: str) -> str:
        return render(prompt) if rng.random() < share else prompt

    return [
        replace(
            example,
            request=example.request.model_copy(update={"prompt": drawn(example.request.prompt)}),
            likelihood_targets=tuple(replace(t, prompt=drawn(t.prompt)) for t in example.likelihood_targets),
            unlikelihood_targets=tuple(replace(t, prompt=drawn(t.prompt)) for t in example.unlikelihood_targets),
            locality_targets=tuple((drawn(prompt), answer) for prompt, answer in example.locality_targets),
        )
        for example in examples
    ]
