"""The queries about one edit, made once and shared by the metrics that read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from instructedit.editors.instructedit import with_instruction
from instructedit.evaluation.metrics.query import Criterion, MetricQuery, ResponseKind
from instructedit.records import PORTABILITY_KINDS, EditRecord, ProbeKind
from instructedit.tasks.task import Task

#: Probes of one kind that a record contributes at most; a few records have dozens.
MAX_PROBES_PER_KIND = 8
#: ConvSent replies of each sentiment that a record contributes at most.
MAX_REPLIES = 5


class RecordQueries:
    """The queries about one record's edit.

    All are made at once and in a fixed order, so that the batches in which they are scored, and with them the last
    digit of every score, do not depend on the order of the metrics.

    Args:
        edit: row of the edit in its batch.
        record: the request with its probes.
        task: decides which probes must change and which must stay.
        opposite: the task that wants the opposite of the same edit, if there is one.
        instruction: the edit's rendered instruction.
        prefixed: whether the instruction stands before the edit, rephrase and portability prompts.

    Attributes:
        request: the edit prompt; the target is wanted, or for a forgetting task neither the old nor the new answer.
        rephrases: its paraphrases, scored alike.
        out_of_scope: by kind, the probes whose answer must not change.
        out_of_scope_prefixed: all of them once more, with the instruction before the prompt; empty without one.
        in_scope: by kind, the probes inside the edit's scope, which have new answers of their own.
        neighbours_kept: neighbours, scored by whether their answer is unchanged.
        neighbours_changed: neighbours, scored by whether their answer is the target.
        portability: by kind, the portability probes, whether or not the task's scope includes them.
        deciding: the queries among these that the task and its opposite want different answers to.
        wanted_replies: ConvSent replies with the wanted sentiment.
        unwanted_replies: ConvSent replies with the other sentiment.
        request_objects: (new, true) likelihood queries of the request's two objects at the edit prompt.
        rephrase_objects: the same at every paraphrase.
        neighbour_objects: the same at every neighbour.
        continuation: the edit prompt, continued by a text.
        true_answer: the true (old) answer at the edit prompt; empty where the request has none.
        true_likelihood: its likelihood, likewise.
    """

    def __init__(
        self,
        edit: int,
        record: EditRecord,
        task: Task,
        opposite: Task | None = None,
        *,
        instruction: str | None = None,
        prefixed: bool = False,
    ) -> None:
        self.edit = edit
        self.record = record
        self.task = task
        self._prefix = instruction if prefixed else None
        self._made: list[MetricQuery] = []
        self._make_scope_queries()
        self._make_portability_queries(instruction)
        self._make_likelihood_queries()
        self.continuation = self.add(record.request.prompt, kind=ResponseKind.TEXT)
        true = (record.request.ground_truth,) if record.request.ground_truth else ()
        self.true_answer = [self.add(record.request.prompt, true)] if true else []
        self.true_likelihood = [self.add(record.request.prompt, true, kind=ResponseKind.LIKELIHOOD)] if true else []
        self.deciding = self._deciding(opposite) if opposite is not None else []

    def add(
        self,
        prompt: str,
        answers: Sequence[str] = (),
        *,
        kind: ResponseKind = ResponseKind.ANSWER,
        criterion: Criterion = Criterion.GIVEN,
        before: bool = True,
    ) -> MetricQuery:
        """Make a query about this edit; see :class:`MetricQuery` for the arguments."""
        query = MetricQuery(self.edit, prompt, tuple(answers), kind, criterion, before)
        self._made.append(query)
        return query

    def ordered(self, needed: Iterable[MetricQuery]) -> list[MetricQuery]:
        """Return the needed queries, each once, in the order in which they were made."""
        chosen = set(needed)
        return [query for query in self._made if query in chosen]

    def _probes(self, kind: ProbeKind, criterion: Criterion, prefix: str | None = None) -> list[MetricQuery]:
        return [
            self.add(with_instruction(probe.prompt, prefix), probe.answers, criterion=criterion)
            for probe in self.record.of_kind(kind)[:MAX_PROBES_PER_KIND]
        ]

    def _make_scope_queries(self) -> None:
        request, task = self.record.request, self.task
        answers: tuple[str, ...] = (request.target,)
        criterion = Criterion.GIVEN
        if task.forgets:
            assert request.ground_truth is not None  # see Task.fits
            answers, criterion = (request.target, request.ground_truth), Criterion.ABSENT
        self.request, *self.rephrases = (
            self.add(with_instruction(prompt, self._prefix), answers, criterion=criterion)
            for prompt in (request.prompt, *self.record.rephrases)
        )
        self.out_of_scope = {kind: self._probes(kind, Criterion.UNCHANGED) for kind in task.out_of_scope}
        self.in_scope = {kind: self._probes(kind, Criterion.GIVEN, self._prefix) for kind in task.portability_in_scope}
        self.neighbours_kept = list(self.out_of_scope.get(ProbeKind.NEIGHBOUR, ()))
        self.neighbours_changed: list[MetricQuery] = []
        for probe in self.record.of_kind(ProbeKind.NEIGHBOUR)[:MAX_PROBES_PER_KIND]:
            if ProbeKind.NEIGHBOUR not in task.out_of_scope:
                kept = self.add(probe.prompt, probe.answers, criterion=Criterion.UNCHANGED)
                self.neighbours_kept.append(kept)
            self.neighbours_changed.append(self.add(probe.prompt, (request.target,)))

    def _make_portability_queries(self, instruction: str | None) -> None:
        self.portability = {kind: self._probes(kind, Criterion.GIVEN, self._prefix) for kind in PORTABILITY_KINDS}
        self.out_of_scope_prefixed: list[MetricQuery] = []
        if instruction is not None:
            for kind in self.task.out_of_scope:
                self.out_of_scope_prefixed += self._probes(kind, Criterion.UNCHANGED, instruction)

    def _make_likelihood_queries(self) -> None:
        request = self.record.request
        neighbours = self.record.of_kind(ProbeKind.NEIGHBOUR)[:MAX_PROBES_PER_KIND]
        self.wanted_replies = [
            self.add(request.prompt, (reply,), kind=ResponseKind.LIKELIHOOD)
            for reply in self.record.same_label_replies[:MAX_REPLIES]
        ]
        self.unwanted_replies = [
            self.add(request.prompt, (reply,), kind=ResponseKind.LIKELIHOOD, before=False)
            for reply in self.record.other_label_replies[:MAX_REPLIES]
        ]
        # ROME's probability forms compare two objects, so they are for records that have both, and neighbours.
        measured = bool(request.ground_truth and neighbours)
        self.request_objects = self._objects([request.prompt] if measured else ())
        self.rephrase_objects = self._objects(self.record.rephrases if measured else ())
        self.neighbour_objects = self._objects([probe.prompt for probe in neighbours] if measured else ())

    def _objects(self, prompts: Sequence[str]) -> list[tuple[MetricQuery, MetricQuery]]:
        request = self.record.request
        return [
            (
                self.add(prompt, (request.target,), kind=ResponseKind.LIKELIHOOD, before=False),
                self.add(prompt, (request.ground_truth or "",), kind=ResponseKind.LIKELIHOOD, before=False),
            )
            for prompt in prompts
        ]

    def _deciding(self, opposite: Task) -> list[MetricQuery]:
        changes, stays = self.task.deciding_kinds(opposite)
        deciding: list[MetricQuery] = []
        for kind in changes:
            deciding += self.neighbours_changed if kind is ProbeKind.NEIGHBOUR else self.in_scope.get(kind, [])
        for kind in stays:
            deciding += self.out_of_scope[kind]
        if self.task.forgets != opposite.forgets:
            deciding += [self.request, *self.rephrases]
        return deciding
