"""The records of one task, with what only the whole file can tell: who shares an object, and in which words."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

from instructedit.records import EditRecord, EditRequest, Probe, ProbeKind


class RecordPool:
    """Records of one task and the neighbours that they are to each other.

    Args:
        records: of one or several files.
    """

    def __init__(self, records: Sequence[EditRecord]) -> None:
        self.records = list(records)
        self._true: list[tuple[str, str, str]] = []  # subject where it is known, prompt, true answer
        self._by_object: dict[str, list[int]] = defaultdict(list)
        #: What stands before and after the subject in the requests, the longest first.
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
        self._by_object[answer].append(len(self._true))
        self._true.append((subject, prompt, answer))

    def neighbours(self, record: EditRecord, count: int, rng: random.Random) -> list[Probe]:
        """Up to ``count`` probes about other subjects with the record's old object: its own, then others'."""
        own = list(record.of_kind(ProbeKind.NEIGHBOUR))
        rng.shuffle(own)
        found = own[:count]
        request = record.request
        sharing = self._by_object.get(request.ground_truth or "", [])
        for _ in range(4 * count):
            if len(found) >= count or not sharing:
                break
            subject, prompt, answer = self._true[rng.choice(sharing)]
            taken = any(probe.prompt == prompt for probe in found) or prompt == request.prompt
            if not taken and not _about(request.subject, subject, prompt):
                found.append(Probe(kind=ProbeKind.NEIGHBOUR, prompt=prompt, answers=(answer,)))
        return found

    def in_words_of(self, request: EditRequest, probe: Probe) -> Probe:
        """The neighbour asked in the request's own sentence, where the subjects of both can be told; else as it is.

        Editing data asks neighbours in other words, so that an editor could tell them by the sentence alone.
        """
        own = sentence_of(request)
        subject = next((found for around in self._sentences if (found := _between(around, probe.prompt))), None)
        if own is None or subject is None:
            return probe
        return probe.model_copy(update={"prompt": subject.join(own)})

    def unrelated(self, record: EditRecord, count: int, rng: random.Random) -> list[Probe]:
        """Up to ``count`` true facts of the pool with neither the record's subject nor its objects."""
        request = record.request
        found: list[Probe] = []
        for _ in range(4 * count):
            if len(found) >= count or not self._true:
                break
            subject, prompt, answer = rng.choice(self._true)
            if answer in (request.ground_truth, request.target) or _about(request.subject, subject, prompt):
                continue
            found.append(Probe(kind=ProbeKind.UNRELATED, prompt=prompt, answers=(answer,)))
        return found

    def completed(self, record: EditRecord, unrelated: int, seed: int) -> EditRecord:
        """The record with ``unrelated`` unrelated probes where its data set brings none; same seed, same probes."""
        if record.of_kind(ProbeKind.UNRELATED, ProbeKind.OTHER_TOPIC):
            return record
        rng = random.Random(f"{seed}-{record.record_id}")
        return record.model_copy(update={"probes": record.probes + tuple(self.unrelated(record, unrelated, rng))})


def sentence_of(request: EditRequest) -> tuple[str, str] | None:
    """What stands before and after the subject; None where the prompt does not name it exactly once."""
    if not request.subject or request.prompt.count(request.subject) != 1:
        return None
    before, after = request.prompt.split(request.subject)
    return before, after


def _between(around: tuple[str, str], prompt: str) -> str | None:
    before, after = around
    if len(prompt) <= len(before) + len(after) or not (prompt.startswith(before) and prompt.endswith(after)):
        return None
    return prompt[len(before) : len(prompt) - len(after)]


def _about(edited: str | None, subject: str, prompt: str) -> bool:
    """Whether a fact is about the edited subject: by its own subject, or because the prompt names it."""
    if not edited:
        return False
    return edited.casefold() == subject.casefold() or edited.casefold() in prompt.casefold()
