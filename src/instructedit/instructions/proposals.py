"""What a proposer of instruction templates is given and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from instructedit.records import EditRecord
from instructedit.tasks.task import Task


@dataclass(frozen=True)
class RankedTemplate:
    """A template that has been scored.

    Attributes:
        text: the template.
        metrics: its mean metrics on validation edits.
        score: the score that templates are ranked by.
    """

    text: str
    metrics: Mapping[str, float]
    score: float


@dataclass(frozen=True)
class ProposalContext:
    """What a proposer sees.

    Attributes:
        task: the task that templates are needed for.
        examples: a few validation edits.
        ranked: the templates scored so far, the best first.
        count: how many candidates are needed.
        round: the round of proposals, counted from 1.
    """

    task: Task
    examples: Sequence[EditRecord]
    ranked: Sequence[RankedTemplate]
    count: int
    round: int


#: A text and the template that it was made from. Texts are not validated yet, and may be anything that JSON can hold.
Proposal = tuple[Any, str | None]


class Proposer(Protocol):
    """Something that writes candidates."""

    name: str

    def propose(self, context: ProposalContext, on_call: Callable[[dict[str, Any]], None]) -> list[Proposal]:
        """Return new candidates; ``on_call`` is called with a record of every call of a service."""
        ...
