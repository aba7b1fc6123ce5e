"""The trial: what an editor makes of validation edits under each of many candidate instructions.

The editor is the trained multi-task one as it is. Its hypernetwork is told a code of the instruction and the queries
stay plain, so a better text needs no training to be used, and scoring one costs no more than evaluating a few edits.
All candidates are scored in one batched evaluation: the same edits, once for each text.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from instructedit.editors.base import Editor
from instructedit.evaluation.metrics import MetricGroup, registered_metrics
from instructedit.evaluation.runner import evaluate
from instructedit.models.language_model import LanguageModel
from instructedit.records import PORTABILITY_KINDS, EditRecord
from instructedit.tasks.task import Task

#: What an instruction is judged by, where the edits have probes for it.
METRICS = ("reliability", "generalization", "locality", "following", "portability")

#: Each edit's value of each metric, in the order of the edits; None where the edit has no such probe.
Values = Mapping[str, Sequence[float | None]]


def means(values: Values) -> dict[str, float]:
    """Each metric's mean over the edits that have it."""
    return {
        name: statistics.fmean(known) for name, row in values.items() if (known := [v for v in row if v is not None])
    }


def overall(values: Values) -> float:
    """The harmonic mean of the metrics' means: a text that gives up one of them scores little."""
    found = [max(value, 0.0) for value in means(values).values()]
    return statistics.harmonic_mean(found) if found else 0.0


def by_edit(values: Values) -> list[float]:
    """Each edit's mean over its metrics, for paired comparisons."""
    return [
        statistics.fmean(known) if (known := [v for v in column if v is not None]) else 0.0
        for column in zip(*values.values(), strict=True)
    ]


def joined(first: Values, second: Values) -> dict[str, list[float | None]]:
    """The values of some edits and of those after them."""
    return {name: [*first[name], *second[name]] for name in METRICS}


@dataclass(frozen=True)
class Trial:
    """An editor, a task and validation edits.

    Attributes:
        records: validation edits, in the order in which they are used; never test edits.
        batch: edits at a time.
    """

    editor: Editor
    language_model: LanguageModel
    task: Task
    records: Sequence[EditRecord]
    seed: int = 0
    batch: int = 64

    def values(
        self, texts: Sequence[str], start: int, stop: int, on_edits: Callable[[int], None] = lambda done: None
    ) -> list[dict[str, list[float | None]]]:
        """For each text, every metric's values on the edits from ``start`` to ``stop``, in one evaluation."""
        part = self.records[start:stop]
        asked = [record for _ in texts for record in part]
        # Where the task wants such probes to stay as they were, or to say nothing, what follows is not to be rewarded.
        unwanted = self.task.forgets or bool(set(PORTABILITY_KINDS) & set(self.task.stay))
        has_portability = not unwanted and any(record.of_kind(*PORTABILITY_KINDS) for record in part)
        groups = (MetricGroup.CORE, MetricGroup.EXTENDED) if has_portability else (MetricGroup.CORE,)
        found = evaluate(
            self.editor,
            self.language_model,
            self.task,
            asked,
            descriptions=[text for text in texts for _ in part],
            metrics=registered_metrics(*groups),
            seed=self.seed,
            batch=self.batch,
            on_edits=on_edits,
        )
        rows = list(found.records.values())
        return [
            {name: [row.get(name) for row in rows[at : at + len(part)]] for name in METRICS}
            for at in range(0, len(rows), len(part))
        ]
