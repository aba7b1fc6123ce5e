"""Routing: which task's instruction a request gets that names neither task nor instruction.

A request is compared with the bundled edits of each task in the base model's own representation. Tasks that ask in
different ways (a statement, a fact of a knowledge base, a question, an opinion) can be told apart by the request; a
scope cannot: it is not in the request, only an instruction can state it. A task takes part by ``routing`` in its YAML.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from instructedit.editors.instruction_encoders import mean_states
from instructedit.models.language_model import LanguageModel
from instructedit.records import EditRequest
from instructedit.tasks.edits import read_edits
from instructedit.tasks.loading import free_text_task, listed_tasks
from instructedit.tasks.task import Task

#: A request whose similarity to every task's examples is below this gets no task. At or above it the task is right for
#: 76%, 96% and 88% of requests of CounterFact, Recent and ZsRE (150 of each training file; bundled base model).
SIMILARITY_THRESHOLD = 0.35
#: Similarity to a task is the mean over this many of its nearest examples.
NEIGHBOURS = 15


@dataclass(frozen=True)
class Route:
    """The task of a request, and its similarity to each task.

    Attributes:
        task: the task; ``free text``, with a neutral instruction, where no similarity reaches
            :data:`SIMILARITY_THRESHOLD`.
        similarities: by task, the mean cosine with its nearest examples.
    """

    task: Task
    similarities: dict[str, float]

    def __str__(self) -> str:
        """Return the similarities in words, the highest first."""
        ranked = sorted(self.similarities.items(), key=lambda item: -item[1])
        return ", ".join(f"{name} {value:.2f}" for name, value in ranked)


class Router:
    """Compares requests with each task's bundled edits.

    Args:
        language_model: its states below the middle block, averaged over tokens, represent a request.
    """

    def __init__(self, language_model: LanguageModel) -> None:
        self._model = language_model
        self._split_layer = len(language_model.structure.blocks) // 2
        self._tasks = {task.name: task for task in listed_tasks() if task.routing is not None}
        states = {
            name: self._states([record.request for record in read_edits(task, task.files.bundled or "")])
            for name, task in self._tasks.items()
        }
        # What all requests have in common does not depend on the task.
        everything = torch.cat(list(states.values()))
        self._centre, self._spread = everything.mean(0), everything.std(0).clamp(min=1e-6)
        self._examples = {name: self._direction(state) for name, state in states.items()}

    def __call__(self, requests: Sequence[EditRequest]) -> list[Route]:
        """Return the route of each request. A request with a label goes to a task of ``routing: label``."""
        routes = []
        for request, direction in zip(requests, self._direction(self._states(requests)), strict=True):
            similarities = {
                name: float((examples @ direction).topk(min(NEIGHBOURS, len(examples))).values.mean())
                for name, examples in self._examples.items()
            }
            kind = "label" if request.label else "prompt"
            best = max((n for n in similarities if self._tasks[n].routing == kind), key=lambda n: similarities[n])
            is_known = request.label is not None or similarities[best] >= SIMILARITY_THRESHOLD
            routes.append(Route(self._tasks[best] if is_known else free_text_task(), similarities))
        return routes

    def _direction(self, states: Tensor) -> Tensor:
        """Return unit vectors (requests, hidden) of states, centred and scaled by those of all examples."""
        return functional.normalize((states - self._centre) / self._spread, dim=1)

    @torch.no_grad()
    def _states(self, requests: Sequence[EditRequest]) -> Tensor:
        """Return (requests, hidden) mean states of the prompts."""
        texts = [request.prompt.strip() for request in requests]
        parts = [texts[start : start + 64] for start in range(0, len(texts), 64)]
        return torch.cat([mean_states(self._model, self._split_layer, part).cpu() for part in parts])
