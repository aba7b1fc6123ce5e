"""A model with the edits of a ledger.

    with Session(language_model, Ledger("edits.db"), "smollm2") as session:
        [entry] = session.edit(EditRequest(subject="iPhone", prompt="The iPhone was created by", target="Microsoft"))
        ...                             # the model is edited by all enabled edits, for anything that uses it
        session.set_state([entry.id], State.DISABLED)

Inside the ``with`` the model is edited by the enabled edits that were made for it; outside it is the base, bit for bit.
Every edit is made for the unedited base. Several are combined (:mod:`instructedit.merging.combining`), always from
their own deltas in the order of their numbers, so that the same edits give the same model whatever was toggled before,
and one more or less never stands on what another left behind.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Self

from instructedit.deltas.delta import Delta
from instructedit.deltas.saving import pack_delta
from instructedit.editors.base import Editor
from instructedit.editors.editing import make_edits
from instructedit.editors.lookup import load_editor
from instructedit.editors.saving import digest_of
from instructedit.errors import LedgerError
from instructedit.evaluation.edit_report import report_edit
from instructedit.evaluation.generation import generate, matches
from instructedit.evaluation.health import HealthLimits, measure_health
from instructedit.ledger.conflicts import Conflict, ConflictKind, ask_the_same, conflict_kind, find_conflicts, refuse
from instructedit.ledger.entry import Entry, NewEdit
from instructedit.ledger.ledger import Ledger, OnConflict
from instructedit.ledger.tables import State
from instructedit.merging.combining import REVISION, Combine, answers_of, combine_edits
from instructedit.models.language_model import LanguageModel
from instructedit.records import EditRequest
from instructedit.tasks.task import Task


@dataclass(frozen=True)
class Rebuilt:
    """An edit that was made again.

    Attributes:
        old: the edit.
        new: the same request, made by another editor or for another base model.
        succeeds: whether the new edit by itself gives its target.
    """

    old: Entry
    new: Entry
    succeeds: bool


class Session:
    """A model with the enabled edits of a ledger; the module shows its use.

    Args:
        language_model: the unedited base model. Its lock is held inside the ``with``; other threads wait.
        ledger: the edits. Those of other base models are left alone; :meth:`rebuild` makes them for this one.
        editor: that makes new edits; a name or a file, see :func:`load_editor`. It is loaded when it is needed.
        combine: how several edits become one change; see :mod:`instructedit.merging.combining`. With ``distil``
            every change of what is enabled takes seconds for each enabled edit.
        limits: of the model's health with all enabled edits, see :meth:`edit`; None measures nothing.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        ledger: Ledger,
        editor: str = "bundled",
        *,
        combine: Combine = "merge",
        limits: HealthLimits | None = None,
    ) -> None:
        self.language_model = language_model
        self.ledger = ledger
        self.combine: Combine = combine
        self.limits = limits
        self._editor_name = editor
        self._editor: Editor | None = None
        self._loaded: dict[str, Delta] = {}  # by digest, of the last combination
        self._open = False
        self._attached = ExitStack()

    def __enter__(self) -> Self:
        self._open = True
        self.refresh()
        return self

    def __exit__(self, *exc: object) -> None:
        self._attached.close()
        self._open = False

    @property
    def editor(self) -> Editor:
        """The editor that makes new edits.

        Raises:
            EditorError: as :func:`load_editor`.
        """
        if self._editor is None:
            self._editor = load_editor(self._editor_name, self.language_model)
        return self._editor

    def enabled(self) -> list[Entry]:
        """Return the enabled edits that were made for this model."""
        return self.ledger.edits([State.ENABLED], base=self.language_model.fingerprint)

    def delta(self, entries: Sequence[Entry] | None = None) -> Delta | None:
        """Return the change of some edits together, or of all enabled ones; None where there are none."""
        chosen = self.enabled() if entries is None else sorted(entries, key=lambda entry: entry.id)
        self._loaded = {entry.delta: self._delta_of(entry) for entry in chosen}
        return self._combined([(entry.delta, self._loaded[entry.delta], entry) for entry in chosen])

    def refresh(self) -> None:
        """Edit the model by what is enabled now, if another process changed the ledger."""
        self._attached.close()
        delta = self.delta() if self._open else None
        if delta is not None:
            self._attached.enter_context(delta.attached(self.language_model))

    def edit(
        self,
        requests: EditRequest | Sequence[EditRequest],
        tasks: Task | str | Sequence[Task | None] | None = None,
        *,
        on_conflict: OnConflict = "refuse",
        gate: Literal["refuse", "flag"] = "refuse",
        report: bool = True,
    ) -> list[Entry]:
        """Make edits, add them to the ledger, all or none, and edit the model by them.

        Args:
            requests: what to change.
            tasks: see :func:`make_edits`.
            on_conflict: what is done where a request contradicts an enabled edit.
            gate: whether edits with which the model exceeds the session's limits are refused, or added all the same;
                the measured figures are in the ledger either way.
            report: measure what each edit does by itself, for the ledger.

        Raises:
            LedgerError: a conflict, or the model's health, is refused; nothing was added.
            EditorError: see :func:`make_edits`.
        """
        requests = [requests] if isinstance(requests, EditRequest) else list(requests)
        if not requests:
            raise LedgerError("there is nothing to edit: give at least one request")
        self._attached.close()
        try:
            made = self._make(requests, tasks)
            known = {} if on_conflict == "keep" else {i: self._answered_by(new.request) for i, new in enumerate(made)}
            if on_conflict == "refuse":  # as the ledger will, but before what takes long
                enabled = self.enabled()
                for index, new in enumerate(made):
                    refuse([*known[index], *find_conflicts(new.request, new.delta.metadata.instruction, enabled)], new)
            made = self._checked(self._with_reports(made) if report else made, known, on_conflict, gate)
            return self.ledger.add(made, on_conflict, known)
        finally:
            self.refresh()

    def set_state(self, numbers: Sequence[int], state: State, reason: str | None = None) -> list[Entry]:
        """Enable, disable or revert edits, see :meth:`Ledger.set_state`, and edit the model by what is enabled then."""
        try:
            return self.ledger.set_state(numbers, state, reason)
        finally:
            self.refresh()

    def rebuild(self, numbers: Sequence[int], *, report: bool = True) -> list[Rebuilt]:
        """Make edits again from their requests, by this session's editor for its model.

        A new edit that does not give its target by itself is added disabled. An old edit of the same base model is
        disabled where its new one is enabled.

        Raises:
            LedgerError: there is no such edit.
        """
        old = [self.ledger.edit(number) for number in numbers]
        if not old:
            return []
        self._attached.close()
        try:
            made = self._make([entry.request for entry in old], None)
            made = self._with_reports(made) if report else made
            rebuilt = []
            for entry, new in zip(old, made, strict=True):
                succeeds = self._gives(new.delta, new.request.prompt, new.request)
                state = State.ENABLED if succeeds else State.DISABLED
                [added] = self.ledger.add([replace(new, made_from=entry.uid)], "keep", state=state)
                if succeeds and entry.base == self.language_model.fingerprint and entry.state is State.ENABLED:
                    self.ledger.set_state([entry.id], State.DISABLED, "rebuilt")
                rebuilt.append(Rebuilt(entry, added, succeeds))
            return rebuilt
        finally:
            self.refresh()

    def _answered_by(self, request: EditRequest) -> list[Conflict]:
        """Return the enabled edits about the same subject that answer the request's prompt with their own target.

        They are about the same relation in other words, which no comparison of texts would find.
        """
        candidates = [
            entry
            for entry in self.enabled()
            if request.subject
            and entry.request.subject
            and request.subject.casefold() == entry.request.subject.casefold()
            and not ask_the_same(request, entry.request)
        ]
        conflicts = []
        for entry in candidates:
            kind = conflict_kind(request, None, entry)
            if kind is not ConflictKind.ANSWER or self._gives(None, request.prompt, entry.request):
                continue
            if self._gives(self._delta_of(entry), request.prompt, entry.request):
                conflicts.append(Conflict(entry, kind))
        return conflicts

    def _make(self, requests: Sequence[EditRequest], tasks: Task | str | Sequence[Task | None] | None) -> list[NewEdit]:
        """Return new edits for the unedited base."""
        deltas = make_edits(self.editor, self.language_model, requests, tasks)
        return [
            NewEdit(
                request=delta.metadata.requests[0],
                delta=delta,
                editor=self._editor_name,
                editor_digest=digest_of(self._editor_name),
                answer=answer,
            )
            for delta, answer in zip(deltas, answers_of(self.editor, requests), strict=True)
        ]

    def _with_reports(self, made: Sequence[NewEdit]) -> list[NewEdit]:
        """Return new edits with what each does by itself."""
        reports = [report_edit(self.language_model, new.delta, self.editor).as_dict() for new in made]
        return [replace(new, report=report) for new, report in zip(made, reports, strict=True)]

    def _checked(
        self, made: list[NewEdit], known: dict[int, list[Conflict]], on_conflict: OnConflict, gate: str
    ) -> list[NewEdit]:
        """Return the edits with the health of the model that has them; refuse them where it is over the limits."""
        if self.limits is None:
            return made
        replaced = {conflict.entry.id for conflicts in known.values() for conflict in conflicts}
        enabled = self.enabled()
        if on_conflict == "replace":
            replaced |= {e.id for e in enabled for new in made if ask_the_same(new.request, e.request)}
        parts = [(entry.delta, self._delta_of(entry), entry) for entry in enabled if entry.id not in replaced]
        added = [(hashlib.sha256(pack_delta(new.delta)).hexdigest(), new.delta, new) for new in made]
        together = self._combined([*parts, *added])
        assert together is not None
        health = measure_health(self.language_model, together)
        exceeded = health.exceeded(self.limits)
        if exceeded and gate == "refuse":
            raise LedgerError(
                f"with {'this edit' if len(made) == 1 else 'these edits'} the model is not healthy: "
                f"{'; '.join(exceeded)}. Nothing was added. Disable other edits, or add it with gate `flag`"
            )
        return [replace(new, health={**health.as_dict(), "exceeded": exceeded}) for new in made]

    def _delta_of(self, entry: Entry) -> Delta:
        """Return what an edit changes; that of an edit of the last combination is not read again."""
        return self._loaded.get(entry.delta) or self.ledger.delta(entry)

    def _combined(self, parts: Sequence[tuple[str, Delta, Entry | NewEdit]]) -> Delta | None:
        """Return edits as one change: (digest, delta, edit) of each, in the order of their numbers.

        What was merged or distilled is kept in the ledger.
        """
        if not parts:
            return None
        edits, deltas = [edit for _, _, edit in parts], [delta for _, delta, _ in parts]
        make = partial(
            combine_edits,
            self.combine,
            deltas,
            [e.request for e in edits],
            [e.answer for e in edits],
            self.language_model,
        )
        if len(deltas) == 1 or self.combine == "sum":
            return make()
        digests = [digest for digest, _, _ in parts]
        parts_of_key = [self.combine, str(REVISION), self.language_model.fingerprint, *digests]
        key = hashlib.sha256("\n".join(parts_of_key).encode()).hexdigest()
        together = self.ledger.combination(key)
        if together is None:
            together = make()
            self.ledger.keep_combination(key, together)
        return together

    def _gives(self, delta: Delta | None, prompt: str, request: EditRequest) -> bool:
        """Return whether the model with a delta continues a prompt with a request's target."""
        length = len(self.language_model.text.encode_pair("a", request.target).ids) + 4
        (after,) = generate(self.language_model, [prompt], delta=delta, new_tokens=length)
        return matches(after, [request.target])
