"""Edits made from the facts table whose consequences are known: what follows in a further step, and read backwards.

The public data sets bring other names of the subject; they bring too few facts that follow from an edit, and of things
that a small base model was never taught. These hang together from facts that the bundled base model knows.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

from instructedit.assets import read_yaml
from instructedit.data.facts import Fact
from instructedit.records import EditRecord, EditRequest, Probe, ProbeKind

#: Probes of a kind that a record gets at most.
PROBES = 2
#: Subjects that share an object, out of which its neighbours are drawn.
SHARING = 3


class ScopeEdits:
    """Makes records from facts: a new object, and all that a scope may reach.

    A record's probes: neighbours with the old object, the same subject in other relations, what follows from the new
    object in a further step (reasoning), and the new fact read backwards (logical).

    Args:
        facts: what the base model was taught.
        seed: of every draw.
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
        """Whoever has a fact that something follows from."""
        return sorted({fact.subject for fact in self._facts if self._linked(fact)})

    def records(self, subjects: Collection[str], count: int) -> list[EditRecord]:
        """At most ``count`` records about these subjects; half have a further step, half are read backwards."""
        usable = [fact for fact in self._facts if fact.subject in subjects and self._linked(fact)]
        self._rng.shuffle(usable)
        found: dict[bool, list[EditRecord]] = {True: [], False: []}
        for fact in usable:
            backwards = fact.relation in self._links["inverse"]
            if len(found[backwards]) < count // 2 and (record := self._record(fact)) is not None:
                found[backwards].append(record)
        both = found[True] + found[False]
        self._rng.shuffle(both)
        return both

    def _linked(self, fact: Fact) -> bool:
        return fact.relation in self._links["described"] or fact.relation in self._links["inverse"]

    def _further(self, edited: Fact, target: str) -> list[Probe]:
        """What is known of the new object, asked of its description."""
        described = self._links["described"].get(edited.relation)
        if described is None:
            return []
        # What holds of the old object as well would not tell whether anything followed.
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

    def _backwards(self, fact: Fact, target: str) -> list[Probe]:
        inverse = self._links["inverse"].get(fact.relation)
        if inverse is None:
            return []
        prompts = Fact(fact.source, inverse, target, fact.subject).statements()
        chosen = self._rng.sample(prompts, min(PROBES, len(prompts)))
        return [Probe(kind=ProbeKind.LOGICAL, prompt=prompt, answers=(fact.subject,)) for prompt in chosen]

    def _record(self, fact: Fact) -> EditRecord | None:
        for target in self._rng.sample(self._objects[fact.relation], min(12, len(self._objects[fact.relation]))):
            if target in (fact.object, fact.subject):
                continue
            probes = self._backwards(fact, target) + self._further(fact, target)
            if probes:
                break
        else:
            return None
        statements, questions = fact.statements(), fact.questions()
        first, second = self._rng.sample(range(len(statements)), 2)
        others = [f for f in self._sharing[fact.relation, fact.object] if f.subject != fact.subject]
        for other in self._rng.sample(others, min(SHARING, len(others)))[:PROBES]:
            asked = other.statements()[self._rng.choice((first, second))]
            probes.append(Probe(kind=ProbeKind.NEIGHBOUR, prompt=asked, answers=(other.object,)))
        own = [f for f in self._about[fact.subject] if f.relation != fact.relation]
        for other in self._rng.sample(own, min(PROBES, len(own))):
            asked = self._rng.choice(other.statements())
            probes.append(Probe(kind=ProbeKind.SAME_SUBJECT, prompt=asked, answers=(other.object,)))
        return EditRecord(
            record_id=f"{fact.relation}-{fact.subject}",
            request=EditRequest(
                prompt=statements[first], target=target, subject=fact.subject, ground_truth=fact.object
            ),
            rephrases=(statements[second], self._rng.choice(questions)),
            probes=tuple(probes),
        )
