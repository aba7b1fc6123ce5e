"""The trial: the metrics of an editor on validation edits under each of many candidate instruction templates.

The trial editor is the trained multi-task editor as it is. Its hypernetwork is conditioned on the instruction and the
queries stay plain, so a better template needs no training to be used, and scoring one costs an evaluation of a few
edits. All candidates are scored in one batched evaluation: the same edits, once for each template.
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

#: The metrics of a template, where the edits have probes for them.
METRICS = ("reliability", "generalization", "locality", "following", "portability")

#: Each edit's value of each metric, in the order of the edits; None where the edit has no such probe.
MetricValues = Mapping[str, Sequence[float | None]]


def metric_means(values: MetricValues) -> dict[str, float]:
    """Return each metric's mean over the edits that have it."""
    return {
        name: statistics.fmean(known) for name, row in values.items() if (known := [v for v in row if v is not None])
    }


def overall_score(values: MetricValues) -> float:
    """Return the harmonic mean of the metrics' means, which is low where one of them is low."""
    means = [max(value, 0.0) for value in metric_means(values).values()]
    return statistics.harmonic_mean(means) if means else 0.0


def edit_means(values: MetricValues) -> list[float]:
    """Return each edit's mean over its metrics, for paired comparisons."""
    return [
        statistics.fmean(known) if (known := [v for v in column if v is not None]) else 0.0
        for column in zip(*values.values(), strict=True)
    ]


def concatenated(first: MetricValues, second: MetricValues) -> dict[str, list[float | None]]:
    """Return the values of some edits and of the edits after them as one."""
    return {name: [*first[name], *second[name]] for name in METRICS}


@dataclass(frozen=True)
class Trial:
    """A trial editor, a task and validation edits.

    Attributes:
        editor: the trained editor.
        language_model: its base model.
        task: the task whose templates are scored.
        records: validation edits, in the order in which they are used; never test edits.
        seed: seed of the evaluation.
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
        """Return, for each template, every metric's values on the edits from ``start`` to ``stop``."""
        part = self.records[start:stop]
        records = [record for _ in texts for record in part]
        # Portability is no merit where the task keeps such probes out of scope, or wants no answer at all.
        excluded = self.task.forgets or bool(set(PORTABILITY_KINDS) & set(self.task.out_of_scope))
        has_portability = not excluded and any(record.of_kind(*PORTABILITY_KINDS) for record in part)
        groups = (MetricGroup.CORE, MetricGroup.EXTENDED) if has_portability else (MetricGroup.CORE,)
        evaluation = evaluate(
            self.editor,
            self.language_model,
            self.task,
            records,
            descriptions=[text for text in texts for _ in part],
            metrics=registered_metrics(*groups),
            seed=self.seed,
            batch=self.batch,
            on_edits=on_edits,
        )
        rows = list(evaluation.records.values())
        return [
            {name: [row.get(name) for row in rows[at : at + len(part)]] for name in METRICS}
            for at in range(0, len(rows), len(part))
        ]
