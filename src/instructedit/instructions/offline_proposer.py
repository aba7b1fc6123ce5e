"""The proposer that needs no network: it draws from the scope grammar and recombines the best templates."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

from instructedit.instructions.grammar import parts_of, scope_grammar
from instructedit.instructions.proposals import Proposal, ProposalContext
from instructedit.tasks.task import Task

#: The scope of sentiment edits; its templates have placeholders, so the tasks of other scopes cannot use them.
_TONE = "tone"


class OfflineProposer:
    """Draws templates from the scope grammar and edits the best ones: sentences are added, dropped or exchanged.

    Args:
        seed: with the round, decides every draw, so that a repeated run proposes the same.
        exploration_rate: share of the sentences that are drawn from other scopes than the task's own. Which text an
            editor follows best is an empirical question, so this pays where candidates are scored; without scores use
            0.
    """

    name = "offline"

    def __init__(self, seed: int = 0, exploration_rate: float = 0.4) -> None:
        self.seed, self.exploration_rate = seed, exploration_rate

    def propose(self, context: ProposalContext, on_call: Callable[[dict[str, Any]], None]) -> list[Proposal]:
        """Return candidates: half are drawn from the grammar, half are made from the best templates so far."""
        rng = random.Random(f"{self.seed}-{context.round}")
        proposals: list[Proposal] = []
        for number in range(context.count):
            best = context.ranked[: max(2, len(context.ranked) // 4)]
            if number % 2 and best:
                parent = rng.choice(best).text
                proposals.append((self._changed(parent, context, rng), parent))
            else:
                proposals.append((self._sentence(context.task, rng), None))
        return proposals

    def _sentence(self, task: Task, rng: random.Random) -> str:
        """Return a template from the grammar, mostly of the task's own scope."""
        own = parts_of(task.instructions.scope) if task.instructions.scope else []
        grammar = scope_grammar()
        others = sorted({*grammar.scopes} - {*own, _TONE})
        stays_in_scope = own and (own == [_TONE] or rng.random() >= self.exploration_rate)
        return grammar.draw(rng.choice(own if stays_in_scope else others), rng)

    def _changed(self, text: str, context: ProposalContext, rng: random.Random) -> str:
        """Return the template with one sentence added, exchanged, dropped, or its rest replaced from another one."""
        sentences = _sentences(text)
        place = rng.randrange(len(sentences))
        operation = rng.choice(("add", "exchange", "drop", "cross"))
        if operation == "add":
            sentences.insert(rng.choice((0, len(sentences))), self._sentence(context.task, rng))
        elif operation == "exchange":
            sentences[place] = self._sentence(context.task, rng)
        elif operation == "drop" and len(sentences) > 1:
            del sentences[place]
        else:
            other = rng.choice(context.ranked).text
            sentences = [*sentences[: place + 1], rng.choice(_sentences(other))]
        return " ".join(sentences)


def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!?])\s+", text)
