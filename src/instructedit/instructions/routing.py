"""Routing: which task's instruction a request gets that names neither task nor instruction.

A request is laid beside examples of each task in the base model's own representation. Tasks that differ in what they
ask for (a statement, a fact of a knowledge base, a question, an opinion) can be told from the request; a scope cannot:
it is not in the request, so only words can say it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from instructedit.data.locations import EDITS
from instructedit.data.readers import read_records
from instructedit.editors.instruction_encoders import mean_states
from instructedit.evaluation.demonstration import OWN_FILES
from instructedit.models.language_model import LanguageModel
from instructedit.records import EditRequest
from instructedit.tasks.task import Task, free_text, load_task

ROUTED = ("counterfact", "recent", "convsent", "zsre")
#: A request less alike than this to every task's examples is given no task. At or above it the task is right for 76%,
#: 96% and 88% of requests of CounterFact, Recent and ZsRE (150 of each training file; bundled base model).
NEAR_ENOUGH = 0.35
#: Of each task, that many of its nearest examples are compared.
NEAREST = 15


@dataclass(frozen=True)
class Route:
    """Where a request goes: the task, and how alike the request is to each task's nearest examples (mean cosine).

    A request that is like none (:data:`NEAR_ENOUGH`) has the task ``free text``, with a neutral instruction.
    """

    task: Task
    similarities: dict[str, float]

    def __str__(self) -> str:
        ranked = sorted(self.similarities.items(), key=lambda item: -item[1])
        return ", ".join(f"{name} {value:.2f}" for name, value in ranked)


class Router:
    """Compares requests with each task's examples, the edits that ship with the package.

    Args:
        language_model: whose states below its middle block represent a request; tokens averaged.
    """

    def __init__(self, language_model: LanguageModel) -> None:
        self._model = language_model
        self._cut = len(language_model.structure.blocks) // 2
        states = {
            name: self._states([record.request for record in read_records(EDITS / OWN_FILES[name])]) for name in ROUTED
        }
        # What all texts have in common says nothing about the task.
        everything = torch.cat(list(states.values()))
        self._centre, self._spread = everything.mean(0), everything.std(0).clamp(min=1e-6)
        self._tasks = {name: self._direction(found) for name, found in states.items()}

    def __call__(self, requests: Sequence[EditRequest]) -> list[Route]:
        """The best-matching task of each request. A request with a label is about sentiment."""
        routes = []
        for request, row in zip(requests, self._direction(self._states(requests)), strict=True):
            found = {name: float((of @ row).topk(NEAREST).values.mean()) for name, of in self._tasks.items()}
            best = "convsent" if request.label else max((n for n in found if n != "convsent"), key=lambda n: found[n])
            known = request.label is not None or found[best] >= NEAR_ENOUGH
            routes.append(Route(load_task(best) if known else free_text(), found))
        return routes

    def _direction(self, states: Tensor) -> Tensor:
        return functional.normalize((states - self._centre) / self._spread, dim=1)

    @torch.no_grad()
    def _states(self, requests: Sequence[EditRequest]) -> Tensor:
        texts = [request.prompt.strip() for request in requests]
        parts = [texts[start : start + 64] for start in range(0, len(texts), 64)]
        return torch.cat([mean_states(self._model, self._cut, part).cpu() for part in parts])
