"""Edits made from the facts table whose consequences are known: two-hop facts and the inverse of the edited fact.

The public data sets have subject aliases, but too few facts that follow from an edit, and those about entities that a
small base model was never trained on. These records are built from facts that the bundled base model knows.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

from instructedit.assets import read_yaml
from instructedit.data.facts import Fact
from instructedit.records import EditRecord, EditRequest, Probe, ProbeKind

#: A record gets at most this many probes of a kind.
PROBES = 2
#: A record's neighbours are drawn from this many subjects with the same object.
SHARING = 3


class ScopeEdits:
    """Edit records made from facts: a new object, and probes of everything that an edit's scope may include.

    A record's probes: neighbours with the old object, the same subject in other relations, two-hop facts of the new
    object (reasoning), and the new fact in the inverse direction (logical).

    Args:
        facts: facts that the base model was trained on.
        seed: seed of every random draw.
    """

    def __init__(self, facts: Sequence[Fact], seed: int = 0) -> None:
        self._rng = random.Random(seed)
        self._links: dict[str, Any] = read_yaml("templates/links.yaml")
        self._facts = list(facts)
        self._about: dict[str, list[Fact]] = defaultdict(list)
        self._sharing: dict[tuple[str, str], list[Fact]] = defaultdict(list)
        self._objects: dict[str, list[str]] = defaultdict(list)
        for fact in facts:
            self._about[fact.subject].append(fact)
            self._sharing[fact.relation, fact.object].append(fact)
            self._objects[fact.relation].append(fact.object)

    def subjects(self) -> list[str]:
        """Return the subjects of all facts that another fact can follow from."""
        return sorted({fact.subject for fact in self._facts if self._has_consequence(fact)})

    def records(self, subjects: Collection[str], count: int) -> list[EditRecord]:
        """Return at most ``count`` records about these subjects, half with two-hop and half with inverse probes."""
        usable = [fact for fact in self._facts if fact.subject in subjects and self._has_consequence(fact)]
        self._rng.shuffle(usable)
        records: dict[bool, list[EditRecord]] = {True: [], False: []}  # by whether the relation has an inverse
        for fact in usable:
            has_inverse = fact.relation in self._links["inverse"]
            if len(records[has_inverse]) < count // 2 and (record := self._record(fact)) is not None:
                records[has_inverse].append(record)
        both = records[True] + records[False]
        self._rng.shuffle(both)
        return both

    def _has_consequence(self, fact: Fact) -> bool:
        return fact.relation in self._links["described"] or fact.relation in self._links["inverse"]

    def _two_hop(self, edited: Fact, target: str) -> list[Probe]:
        """Return probes about facts of the new object, which the prompt names by a description of it."""
        described = self._links["described"].get(edited.relation)
        if described is None:
            return []
        # A fact that the old object has as well would not show whether the edit had consequences.
        before = {(fact.relation, fact.object) for fact in self._about[edited.object]}
        known = [fact for fact in self._about[target] if fact.relation in self._links["further"]]
        known = [fact for fact in known if (fact.relation, fact.object) not in before]
        self._rng.shuffle(known)
        probes = []
        for fact in known[:PROBES]:
            described_as = self._rng.choice(described).replace("{subject}", edited.subject)
            prompt = self._rng.choice(Fact(fact.source, fact.relation, described_as, fact.object).statements())
            if fact.object not in (edited.subject, target):
                probes.append(
                    Probe(kind=ProbeKind.REASONING, prompt=prompt[0].upper() + prompt[1:], answers=(fact.object,))
                )
        return probes

    def _inverse(self, fact: Fact, target: str) -> list[Probe]:
        """Return probes that give the new object and ask for the subject."""
        inverse = self._links["inverse"].get(fact.relation)
        if inverse is None:
            return []
        prompts = Fact(fact.source, inverse, target, fact.subject).statements()
        chosen = self._rng.sample(prompts, min(PROBES, len(prompts)))
        return [Probe(kind=ProbeKind.LOGICAL, prompt=prompt, answers=(fact.subject,)) for prompt in chosen]

    def _record(self, fact: Fact) -> EditRecord | None:
        # A new object is drawn until one has a consequence to probe.
        for target in self._rng.sample(self._objects[fact.relation], min(12, len(self._objects[fact.relation]))):
            if target in (fact.object, fact.subject):
                continue
            probes = self._inverse(fact, target) + self._two_hop(fact, target)
            if probes:
                break
        else:
            return None
        statements, questions = fact.statements(), fact.questions()
        first, second = self._rng.sample(range(len(statements)), 2)
        others = [f for f in self._sharing[fact.relation, fact.object] if f.subject != fact.subject]
        for other in self._rng.sample(others, min(SHARING, len(others)))[:PROBES]:
            prompt = other.statements()[self._rng.choice((first, second))]
            probes.append(Probe(kind=ProbeKind.NEIGHBOUR, prompt=prompt, answers=(other.object,)))
        same_subject = [f for f in self._about[fact.subject] if f.relation != fact.relation]
        for other in self._rng.sample(same_subject, min(PROBES, len(same_subject))):
            prompt = self._rng.choice(other.statements())
            probes.append(Probe(kind=ProbeKind.SAME_SUBJECT, prompt=prompt, answers=(other.object,)))
        return EditRecord(
            record_id=f"{fact.relation}-{fact.subject}",
            request=EditRequest(
                prompt=statements[first], target=target, subject=fact.subject, ground_truth=fact.object
            ),
            rephrases=(statements[second], self._rng.choice(questions)),
            probes=tuple(probes),
        )
