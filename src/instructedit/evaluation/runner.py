"""The batched evaluation: many independent edits at once, each measured by registered metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from instructedit.data.pool import RecordPool
from instructedit.editors.base import Editor
from instructedit.errors import DataError
from instructedit.evaluation.intervals import Estimate, estimate
from instructedit.evaluation.judge import Judge
from instructedit.evaluation.metrics import Metric, MetricGroup, registered_metrics
from instructedit.evaluation.metrics.query import MetricQuery, Result
from instructedit.evaluation.protocols import Control, InstructionChooser, Protocol, described
from instructedit.evaluation.queries import RecordQueries
from instructedit.evaluation.responses import respond
from instructedit.instructions.templates import Split
from instructedit.models.language_model import LanguageModel
from instructedit.records import EditRecord
from instructedit.tasks.loading import load_task
from instructedit.tasks.task import Task

#: Unrelated probes that a record is given where its task needs some and its file has none.
ADDED_UNRELATED = 2
#: Memory for the hidden states of prompts that the frozen blocks have read, in bytes.
TRUNK_BYTES = 500_000_000


@dataclass(frozen=True)
class Evaluation:
    """Scores on one task.

    Attributes:
        task: name of the task.
        protocol: how queries look and answers are given.
        instruction: which instruction the edits were made with, in words.
        metrics: each metric's mean and 95% interval over edits.
        edits: number of edits.
        seconds: wall time.
        records: the values of every edit, by record id.
        judge: model and address of what compared generated answers, if anything did.
    """

    task: str
    protocol: Protocol
    instruction: str
    metrics: dict[str, Estimate]
    edits: int
    seconds: float
    records: dict[str, dict[str, float]] = field(repr=False, default_factory=dict)
    judge: str | None = None

    def as_dict(self, with_records: bool = False) -> dict[str, Any]:
        """Return a dictionary for JSON.

        Args:
            with_records: include the values of every edit.
        """
        content: dict[str, Any] = {
            "task": self.task,
            "protocol": str(self.protocol),
            "instruction": self.instruction,
            "edits": self.edits,
            "interval": "95%, bootstrap over edits",
            "seconds": round(self.seconds, 2),
            "metrics": {name: value.as_dict() for name, value in self.metrics.items()},
        }
        if self.judge is not None:
            content["judge"] = self.judge
        if with_records:
            content["records"] = self.records
        return content


def evaluate(
    editor: Editor,
    language_model: LanguageModel,
    task: Task,
    records: Sequence[EditRecord],
    *,
    metrics: Sequence[Metric] | None = None,
    protocol: Protocol = Protocol.PLAIN,
    instruction: Control = Control.UNSEEN,
    templates: Split | None = None,
    opposite: str | None = None,
    descriptions: Sequence[str] | None = None,
    judge: Judge | None = None,
    seed: int = 0,
    batch: int = 32,
    on_edits: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """Make every record's edit by itself on the base model and measure it.

    Args:
        editor: makes the edits.
        language_model: the base model.
        task: decides what must change and what must stay.
        records: requests with their probes.
        metrics: what is measured; the core and extended ones by default, see :class:`MetricGroup`. A metric that does
            not apply to a record, or needs likelihoods under free generation, is left out.
        protocol: how queries look and answers are given.
        instruction: which instruction the edits get.
        templates: see :class:`InstructionChooser`.
        opposite: task to swap with and to tell apart, in place of the task's own opposite.
        descriptions: one description per record, in place of the task's.
        judge: compares generated answers, in place of a comparison of their words; for protocols that generate.
        seed: of drawn instructions, completed records and intervals.
        batch: edits at a time.
        on_edits: called with the number of edits done.

    Raises:
        DataError: there are no records, one lacks what the task is about, the instruction does not fit the task, or
            there is a judge but nothing is generated.
        EditorError: a request cannot be edited, or the judge's endpoint did not answer.
    """
    _check_records(task, records)
    if judge is not None and not protocol.generates:
        raise DataError(f"protocol {protocol} generates no answers for a judge; use generation or answer")
    began = time.monotonic()
    if metrics is None:
        metrics = registered_metrics(MetricGroup.CORE, MetricGroup.EXTENDED)
    choose_instruction = InstructionChooser(task, instruction, templates, seed, opposite, descriptions)
    opposite = opposite or task.opposite
    against = load_task(opposite) if opposite else None
    pool = RecordPool(records)
    values: dict[str, dict[str, float]] = {}
    # The edit and all queries before and after share prompts: the frozen blocks read each of them once.
    with language_model.cache_trunk(editor.split_layer, memory=TRUNK_BYTES):
        for start in range(0, len(records), batch):
            part = list(records[start : start + batch])
            if task.is_wider:  # what a wider edit must leave unchanged is not in the record itself
                part = [pool.completed(record, ADDED_UNRELATED, seed) for record in part]
            instructions = [choose_instruction(record.request) for record in part]
            edits = editor.edit(language_model, [record.request for record in part], instructions)
            plans = [
                RecordQueries(row, record, task, against, instruction=text, prefixed=protocol is Protocol.PAPER)
                for row, (record, text) in enumerate(zip(part, instructions, strict=True))
            ]
            needed = [{metric: metric.queries(plan) for metric in metrics} for plan in plans]
            queries = [
                query
                for plan, by_metric in zip(plans, needed, strict=True)
                for query in plan.ordered(chain.from_iterable(by_metric.values()))
            ]
            results = respond(queries, language_model, editor.split_layer, edits, protocol, judge)
            for record, by_metric in zip(part, needed, strict=True):
                values[f"{record.record_id}#{len(values)}"] = _reduce(by_metric, results)
            on_edits(len(values))
    names = [metric.name for metric in metrics if any(metric.name in row for row in values.values())]
    return Evaluation(
        task=task.name,
        protocol=protocol,
        instruction=described(instruction, templates),
        judge=None if judge is None else judge.name,
        metrics={name: estimate([row[name] for row in values.values() if name in row], seed) for name in names},
        edits=len(values),
        seconds=time.monotonic() - began,
        records=values,
    )


def _check_records(task: Task, records: Sequence[EditRecord]) -> None:
    if not records:
        raise DataError(f"there are no records of task {task.name} to evaluate")
    for index, record in enumerate(records):
        if not task.fits(record):
            raise DataError(
                f"lacks the probes or the ground_truth that task {task.name} needs; remove the record", record=index
            )


def _reduce(needed: Mapping[Metric, Sequence[MetricQuery]], results: Mapping[MetricQuery, Result]) -> dict[str, float]:
    """Compute one edit's values; a metric without queries or without a response to each is left out."""
    values: dict[str, float] = {}
    for metric, queries in needed.items():
        if queries and all(query in results for query in queries):
            value = metric.reduce([results[query] for query in queries])
            if value is not None:
                values[metric.name] = value
    return values
