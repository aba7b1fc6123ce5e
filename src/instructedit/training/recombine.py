"""More edits from few: another target of the same relation, or another relation of the same subject.

The training file of recent facts has some hundreds of records, and an editor learns them by heart within a
thousand steps. Sentences, subjects and targets recombine into millions of edits that are as good to practise on:
an edit has to be carried out whether or not it is true.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

from instructedit.data.pool import sentence_of
from instructedit.data.schemas.knowedit import negated_form, question_form
from instructedit.records import EditRecord, EditRequest, Probe, ProbeKind


class Recombination:
    """Draws new records from the parts of old ones.

    Only records that name their subject in a prompt with a question form (``The name of the spouse of X is``)
    are taken apart; a paraphrase and the probe that excludes the new target are then made by rule.
    """

    def __init__(self, records: Sequence[EditRecord]) -> None:
        self._targets: dict[tuple[str, str], list[str]] = defaultdict(list)
        for record in records:
            sentence = _sentence(record.request)
            if sentence is not None:
                self._targets[sentence].append(record.request.target)
        #: With repetition, so that a relation is drawn as often as the records use it.
        self._sentences = [sentence for sentence, targets in self._targets.items() for _ in targets]

    def __call__(self, record: EditRecord, rng: random.Random) -> EditRecord:
        """The record with another target, in half of the draws also in another sentence about its subject.

        What does not depend on the old target is kept. A record that cannot be taken apart comes back as it is.
        """
        sentence, subject = _sentence(record.request), record.request.subject
        if sentence is None or subject is None:
            return record
        moved = rng.random() < 0.5
        if moved:
            sentence = rng.choice(self._sentences)
        prompt = subject.join(sentence)
        target = rng.choice(self._targets[sentence])
        request = record.request.model_copy(
            update={"prompt": prompt, "target": target, "ground_truth": None if moved else record.request.ground_truth}
        )
        probes = [p for p in record.of_kind(ProbeKind.SAME_SUBJECT, ProbeKind.UNRELATED) if p.prompt != prompt]
        probes.append(_excluding(request, rng.choice(self._targets[sentence])))
        question = question_form(prompt)
        rephrases = (question,) if question and moved else record.rephrases
        return record.model_copy(update={"request": request, "rephrases": rephrases, "probes": tuple(probes)})


def _sentence(request: EditRequest) -> tuple[str, str] | None:
    """What stands around the subject; None where the prompt has no question form or does not name it once."""
    return sentence_of(request) if question_form(request.prompt) is not None else None


def _excluding(request: EditRequest, answer: str) -> Probe:
    """The request's prompt with the new target excluded; what the model said there is to stay."""
    prompt = negated_form(request.prompt, request.target)
    assert prompt is not None  # a prompt with a question form has this one too
    return Probe(kind=ProbeKind.FORGETFULNESS, prompt=prompt, answers=(answer,))
