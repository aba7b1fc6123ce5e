"""A task: what an edit must change and what it must keep, its files, its instruction templates, and how it is shown.

A task is declared by one YAML file, such as those in ``assets/tasks``; no code is needed.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

from instructedit.data.schemas.columns import Columns
from instructedit.instructions.templates import InstructionTemplates, Line
from instructedit.records import PORTABILITY_KINDS, EditRecord, ProbeKind


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TaskFiles(_Frozen):
    """The data files of a task.

    A name is relative to the task's YAML file, else to the data folder; ``bundled/x`` ships with the package.

    Attributes:
        train: files that editors are trained on.
        validation: edits that no editor is trained on, to choose instruction templates by; apart from ``test``.
        test: edits that results are reported on.
        bundled: edits that stand in where the data folder is not at hand, and the examples that requests are routed by.
    """

    train: tuple[str, ...] = ()
    validation: str | None = None
    test: str | None = None
    bundled: str | None = None


class Task(_Frozen):
    """A kind of edit.

    Attributes:
        name: how the command line and recipes refer to it.
        summary: one line for people.
        order: position in tables and among the tasks that requests are routed to; equal positions are sorted by name.
        files: its data files.
        record_schema: the schema that its files must have; None accepts any known one.
        columns: which column holds which field, for files of flat records in no known schema.
        in_scope: what must change with the edit: ``request`` and ``rephrase`` take the new target, ``opposite_label``
            replies become less likely, and a probe kind takes the new target (``neighbour``) or its own answers.
        forgets: what is in scope is to give neither the old answer nor the new one.
        out_of_scope: probe kinds that must keep the answers they had before.
        opposite: the task that wants the opposite of the same edit; its text is the swapped control.
        held_out: no editor is trained on it.
        headline_metrics: the metrics of its row in the demo's table; a task without any is left out of the table.
        scope_metric: the headline metric that shows whether the edit followed this scope or the opposite one; the demo
            measures it with the opposite task's instruction as well.
        routing: which requests that name no task are routed here: ``prompt`` those that resemble the bundled edits,
            ``label`` those that have a label; None routes none.
        instructions: its instruction templates.
    """

    name: Line
    summary: Line
    order: int = 100
    files: TaskFiles = TaskFiles()
    record_schema: str | None = None
    columns: Columns | None = None
    in_scope: tuple[
        Literal["request", "rephrase", "opposite_label", "neighbour", "subject_alias", "reasoning", "logical"], ...
    ] = ("request", "rephrase")
    forgets: bool = False
    out_of_scope: tuple[ProbeKind, ...]
    opposite: str | None = None
    held_out: bool = False
    headline_metrics: tuple[str, ...] = ()
    scope_metric: str | None = None
    routing: Literal["prompt", "label"] | None = None
    instructions: InstructionTemplates

    @model_validator(mode="after")
    def _check_files(self) -> Task:
        if self.routing is not None and self.files.bundled is None:
            raise ValueError("routing needs files.bundled, the examples for the comparison with requests")
        if self.headline_metrics and self.files.test is None and self.files.bundled is None:
            raise ValueError("headline_metrics need files.test or files.bundled, the edits for the evaluation")
        if self.scope_metric is not None and (self.scope_metric not in self.headline_metrics or self.opposite is None):
            raise ValueError("scope_metric must be one of headline_metrics, and needs an opposite")
        return self

    @property
    def renames(self) -> bool:
        """Whether subjects that share the old object are to get the new one."""
        return "neighbour" in self.in_scope

    @property
    def portability_in_scope(self) -> tuple[ProbeKind, ...]:
        """The portability probes that are to give answers of their own."""
        return tuple(kind for kind in PORTABILITY_KINDS if kind in self.in_scope)

    @property
    def is_wider(self) -> bool:
        """Whether the edit is more than a new answer to one question."""
        return self.renames or self.forgets or bool(self.portability_in_scope)

    def fits(self, record: EditRecord) -> bool:
        """Return whether a record has what the task needs: every portability probe in scope, an answer to forget."""
        return all(record.of_kind(kind) for kind in self.portability_in_scope) and not (
            self.forgets and record.request.ground_truth is None
        )

    def deciding_kinds(self, other: Task) -> tuple[tuple[ProbeKind, ...], tuple[ProbeKind, ...]]:
        """Return the probe kinds that show whether an edit followed this task and not the other.

        Returns:
            the kinds that are in scope here only, and those out of scope here that are in the other's scope.
        """
        changes = tuple(kind for kind in ProbeKind if kind in self.in_scope and kind not in other.in_scope)
        return changes, tuple(kind for kind in self.out_of_scope if kind in other.in_scope)
