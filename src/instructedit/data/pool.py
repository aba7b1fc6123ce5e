"""The records of one task, indexed by object: which subjects share an old answer, and in which sentences."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

from instructedit.records import EditRecord, EditRequest, Probe, ProbeKind


class RecordPool:
    """Records of one task, and probes drawn from the other records of the pool.

    Args:
        records: the records of one or several files.

    Attributes:
        records: the same, as a list.
    """

    def __init__(self, records: Sequence[EditRecord]) -> None:
        self.records = list(records)
        self._true_facts: list[tuple[str, str, str]] = []  # subject where it is known, prompt, true answer
        self._by_object: dict[str, list[int]] = defaultdict(list)
        # Text before and after the subject in the requests, the longest first.
        self._sentences = sorted(
            {sentence for record in self.records if (sentence := sentence_of(record.request))},
            key=lambda sentence: (-len("".join(sentence)), sentence),
        )
        for record in self.records:
            request = record.request
            if request.ground_truth:
                self._add(request.subject or "", request.prompt, request.ground_truth)
            for probe in record.of_kind(ProbeKind.NEIGHBOUR):
                self._add("", probe.prompt, probe.answers[0])

    def _add(self, subject: str, prompt: str, answer: str) -> None:
        self._by_object[answer].append(len(self._true_facts))
        self._true_facts.append((subject, prompt, answer))

    def neighbours(self, record: EditRecord, count: int, rng: random.Random) -> list[Probe]:
        """Return up to ``count`` probes about other subjects with the record's old object.

        The record's own neighbours come first; the pool's other records fill up the rest.
        """
        own = list(record.of_kind(ProbeKind.NEIGHBOUR))
        rng.shuffle(own)
        probes = own[:count]
        request = record.request
        sharing = self._by_object.get(request.ground_truth or "", [])
        for _ in range(4 * count):
            if len(probes) >= count or not sharing:
                break
            subject, prompt, answer = self._true_facts[rng.choice(sharing)]
            taken = any(probe.prompt == prompt for probe in probes) or prompt == request.prompt
            if not taken and not _about(request.subject, subject, prompt):
                probes.append(Probe(kind=ProbeKind.NEIGHBOUR, prompt=prompt, answers=(answer,)))
        return probes

    def in_sentence_of(self, request: EditRequest, probe: Probe) -> Probe:
        """Return the neighbour with the request's own sentence as its prompt.

        The data sets ask for neighbours in other words, so an editor could recognise them by the sentence alone. Where
        the subject of the request or of the probe cannot be located in its prompt, the probe is returned as it is.
        """
        own = sentence_of(request)
        subject = next((text for around in self._sentences if (text := _between(around, probe.prompt))), None)
        if own is None or subject is None:
            return probe
        return probe.model_copy(update={"prompt": subject.join(own)})

    def unrelated(self, record: EditRecord, count: int, rng: random.Random) -> list[Probe]:
        """Return up to ``count`` true facts of the pool with neither the record's subject nor its objects."""
        request = record.request
        probes: list[Probe] = []
        for _ in range(4 * count):
            if len(probes) >= count or not self._true_facts:
                break
            subject, prompt, answer = rng.choice(self._true_facts)
            if answer in (request.ground_truth, request.target) or _about(request.subject, subject, prompt):
                continue
            probes.append(Probe(kind=ProbeKind.UNRELATED, prompt=prompt, answers=(answer,)))
        return probes

    def completed(self, record: EditRecord, unrelated: int, seed: int) -> EditRecord:
        """Return the record with ``unrelated`` unrelated probes where its data set has none; same seed, same probes."""
        if record.of_kind(ProbeKind.UNRELATED, ProbeKind.OTHER_TOPIC):
            return record
        rng = random.Random(f"{seed}-{record.record_id}")
        return record.model_copy(update={"probes": record.probes + tuple(self.unrelated(record, unrelated, rng))})


def sentence_of(request: EditRequest) -> tuple[str, str] | None:
    """Return the prompt before and after the subject, or None where it does not name the subject exactly once."""
    if not request.subject or request.prompt.count(request.subject) != 1:
        return None
    before, after = request.prompt.split(request.subject)
    return before, after


def _between(around: tuple[str, str], prompt: str) -> str | None:
    """Return the text of a prompt between the two parts of a sentence, or None where it is another sentence."""
    before, after = around
    if len(prompt) <= len(before) + len(after) or not (prompt.startswith(before) and prompt.endswith(after)):
        return None
    return prompt[len(before) : len(prompt) - len(after)]


def _about(edited: str | None, subject: str, prompt: str) -> bool:
    """Return whether a fact is about the edited subject: by its own subject, or because the prompt names it."""
    if not edited:
        return False
    return edited.casefold() == subject.casefold() or edited.casefold() in prompt.casefold()
