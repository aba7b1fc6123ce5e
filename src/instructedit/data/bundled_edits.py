"""Edits made from the facts table with our own prompt templates, so that demo and tests need no data set.

They have the probes of the public data sets and take their subjects from outside the editors' training files, but
they are not those data sets, and a result on them is not a result on those.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Collection, Sequence
from itertools import pairwise

from instructedit.assets import read_yaml
from instructedit.data.facts import Fact
from instructedit.data.opinions import opinion_questions
from instructedit.records import EditRecord, EditRequest, Probe, ProbeKind


class FactEdits:
    """Edit records made from facts.

    Args:
        facts: facts that the base model was trained on.
        avoid: subjects that no record may be about (those of the editors' training files).
        seed: seed of every random draw.
    """

    def __init__(self, facts: Sequence[Fact], avoid: Collection[str], seed: int = 0) -> None:
        self._rng = random.Random(seed)
        self._facts = list(facts)
        templated = [fact for fact in facts if fact.source == "trex"]
        self._objects: dict[str, list[str]] = defaultdict(list)
        self._sharing: dict[tuple[str, str], list[Fact]] = defaultdict(list)
        for fact in templated:
            self._objects[fact.relation].append(fact.object)
            self._sharing[fact.relation, fact.object].append(fact)
        self._editable = [
            fact
            for fact in templated
            if fact.subject not in avoid
            and len(self._sharing[fact.relation, fact.object]) >= 4
            and len(set(self._objects[fact.relation])) >= 3
        ]

    def counterfactual(self, count: int) -> list[EditRecord]:
        """Return records with a new object of the same relation and two neighbours that have the old one."""
        records = []
        for index, fact in enumerate(self._rng.sample(self._editable, count)):
            statements, questions = fact.statements(), fact.questions()
            first, second = self._rng.sample(range(len(statements)), 2)
            others = [f for f in self._sharing[fact.relation, fact.object] if f.subject != fact.subject]
            neighbours = self._rng.sample(others, 2)
            records.append(
                EditRecord(
                    record_id=f"own-{index}",
                    request=self._request(fact, statements[first]),
                    rephrases=(statements[second], self._rng.choice(questions)),
                    probes=tuple(
                        Probe(kind=ProbeKind.NEIGHBOUR, prompt=f.statements()[first], answers=(f.object,))
                        for f in neighbours
                    ),
                )
            )
        return records

    def questions(self, count: int) -> list[EditRecord]:
        """Return records that correct the answer to a question, with an unrelated question."""
        records = []
        for index, fact in enumerate(self._rng.sample(self._editable, count)):
            first, second = self._rng.sample(fact.questions(), 2)
            other = self._rng.choice([f for f in self._rng.sample(self._facts, 50) if f.subject != fact.subject])
            unrelated = self._rng.choice(other.questions())
            records.append(
                EditRecord(
                    record_id=f"own-{index}",
                    request=self._request(fact, first),
                    rephrases=(second,),
                    probes=(Probe(kind=ProbeKind.UNRELATED, prompt=unrelated, answers=(other.object,)),),
                )
            )
        return records

    def recent(self, missing: Sequence[tuple[str, str, str]], count: int) -> list[EditRecord]:
        """Return records that add facts.

        Args:
            missing: facts that the base model was not trained on, as (subject, relation's name, object).
            count: how many records.
        """
        known: dict[str, list[Fact]] = defaultdict(list)
        for fact in self._facts:
            if fact.source != "trex":
                known[fact.subject].append(fact)
        records = []
        usable = [item for item in missing if any(f.relation != item[1] for f in known[item[0]])]
        for index, (subject, relation, target) in enumerate(self._rng.sample(usable, count)):
            fact = Fact("own", relation, subject, target)
            prompt, rephrase = self._rng.sample(fact.statements(), 2)
            others = [other for other in known[subject] if other.relation != relation][:4]
            records.append(
                EditRecord(
                    record_id=f"own-{index}",
                    request=EditRequest(prompt=prompt, target=target, subject=subject),
                    rephrases=(rephrase, self._rng.choice(fact.questions())),
                    probes=tuple(
                        Probe(kind=ProbeKind.SAME_SUBJECT, prompt=other.statements()[0], answers=(other.object,))
                        for other in others
                    ),
                )
            )
        return records

    def opinions(self, topics: Sequence[str], count: int) -> list[EditRecord]:
        """Return records with positive and negative replies about the topics, from our own templates."""
        replies = {label: read_yaml("templates/opinions.yaml")[label] for label in ("positive", "negative")}
        questions = opinion_questions()
        chosen = self._rng.sample(list(topics), count + 1)
        records = []
        for index, (topic, other) in enumerate(pairwise(chosen)):
            label, opposite = ("positive", "negative") if index % 2 else ("negative", "positive")

            def draw_replies(about: str, sentiment: str, number: int) -> tuple[str, ...]:
                templates = self._rng.sample(replies[sentiment], number)
                return tuple(text.replace("{topic}", about) for text in templates)

            same_label = draw_replies(topic, label, 4)
            prompts = [question.format(topic=topic) for question in self._rng.sample(questions, 2)]
            other_topic = Probe(
                kind=ProbeKind.OTHER_TOPIC,
                prompt=self._rng.choice(questions).format(topic=other),
                answers=draw_replies(other, opposite, 1),
            )
            records.append(
                EditRecord(
                    record_id=f"own-{index}",
                    request=EditRequest(prompt=prompts[0], target=same_label[0], subject=topic, label=label),
                    rephrases=(prompts[1],),
                    probes=(other_topic,),
                    same_label_replies=same_label,
                    other_label_replies=draw_replies(topic, opposite, 4),
                )
            )
        return records

    def _request(self, fact: Fact, prompt: str) -> EditRequest:
        target = self._rng.choice([o for o in self._objects[fact.relation] if o != fact.object])
        return EditRequest(prompt=prompt, target=target, subject=fact.subject, ground_truth=fact.object)


def named_requests(records: Sequence[EditRecord]) -> list[tuple[str, str, str]]:
    """Return (subject, relation's name, target) of KnowEdit requests whose prompt names the relation plainly."""
    triples = []
    for record in records:
        subject, prompt = record.request.subject, record.request.prompt
        head, tail = "The ", f" of {subject} is"
        if subject and prompt.startswith(head) and prompt.endswith(tail):
            relation = prompt[len(head) : -len(tail)].removeprefix("name of the ")
            if relation.replace(" ", "").isalpha():
                triples.append((subject, relation, record.request.target))
    return triples
