"""Data augmentation: more edits from few, by another target of the relation or another relation of the subject.

The training file of recent facts has some hundreds of records, which an editor memorises within a thousand steps.
Sentences, subjects and targets recombine into millions of edits that serve training as well, since an edit must be
carried out whether or not it is true.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

from instructedit.data.pool import sentence_of
from instructedit.data.schemas.knowedit import negated_form, question_form
from instructedit.records import EditRecord, EditRequest, Probe, ProbeKind


class Recombination:
    """Recombination of the sentences, subjects and targets of a set of records.

    Only records that name their subject in a prompt with a question form (``The name of the spouse of X is``) are
    recombined; their paraphrase, and the probe that excludes the new target, are then made by rule.

    Args:
        records: Whose parts are drawn.
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
        """Return the record with another target, in half of the draws also in another sentence about its subject.

        Probes that do not depend on the old target are kept. A record that cannot be recombined is returned as it is.
        """
        sentence, subject = _sentence(record.request), record.request.subject
        if sentence is None or subject is None:
            return record
        changes_sentence = rng.random() < 0.5
        if changes_sentence:
            sentence = rng.choice(self._sentences)
        prompt = subject.join(sentence)
        target = rng.choice(self._targets[sentence])
        old_answer = None if changes_sentence else record.request.ground_truth
        request = record.request.model_copy(update={"prompt": prompt, "target": target, "ground_truth": old_answer})
        probes = [p for p in record.of_kind(ProbeKind.SAME_SUBJECT, ProbeKind.UNRELATED) if p.prompt != prompt]
        probes.append(_exclusion_probe(request, rng.choice(self._targets[sentence])))
        question = question_form(prompt)
        rephrases = (question,) if question and changes_sentence else record.rephrases
        return record.model_copy(update={"request": request, "rephrases": rephrases, "probes": tuple(probes)})


def _sentence(request: EditRequest) -> tuple[str, str] | None:
    """Return the text before and after the subject; None if the prompt has no question form or names it not once."""
    return sentence_of(request) if question_form(request.prompt) is not None else None


def _exclusion_probe(request: EditRequest, answer: str) -> Probe:
    """Return the locality probe that excludes the new target from the request's prompt."""
    prompt = negated_form(request.prompt, request.target)
    assert prompt is not None  # a prompt with a question form has this one too
    return Probe(kind=ProbeKind.FORGETFULNESS, prompt=prompt, answers=(answer,))
