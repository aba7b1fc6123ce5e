"""What the bundled base model reads: facts in our own sentences, and the data sets' own true answers.

A document is a prompt and an answer. Facts are written anew in every epoch, as a statement or a question drawn
at random, so that the model learns the fact and not the sentence. What an edit is to bring (the new targets)
is never taught.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from instructedit.assets import read_yaml
from instructedit.records import EditRecord, ProbeKind
from instructedit.tasks.facts import Fact
from instructedit.tasks.opinions import opinion_questions
from instructedit.tasks.readers import question_form, read_records

TRUE_PROBES = (ProbeKind.NEIGHBOUR, ProbeKind.SAME_SUBJECT, ProbeKind.FORGETFULNESS, ProbeKind.UNRELATED)


@dataclass(frozen=True)
class Document:
    """One thing to learn: after ``prompt`` comes ``answer``."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Corpus:
    """The sources of one base model's training text.

    Attributes:
        facts: triples, rendered through templates.
        true_answers: groups of documents, each group one fact in the data set's own words (prompt,
            paraphrase, question); one of a group is read in an epoch.
        replies: ConvSent replies by topic.
        prefixes: instruction texts that stand before a few of the documents, so that the model has seen
            some; needed only by the paper's protocol.
    """

    facts: Sequence[Fact]
    true_answers: Sequence[tuple[Document, ...]]
    replies: Sequence[tuple[str, str]]
    prefixes: Sequence[str]

    def epoch(
        self,
        seed: int,
        share_of_questions: float = 0.4,
        share_of_replies: float = 0.35,
        share_of_prefixed: float = 0.02,
    ) -> list[Document]:
        """The documents of one epoch, shuffled; the same seed gives the same documents."""
        rng = random.Random(seed)
        documents = []
        for fact in self.facts:
            forms = fact.questions() if rng.random() < share_of_questions else fact.statements()
            documents.append(Document(rng.choice(forms), fact.object))
        documents += [rng.choice(group) for group in self.true_answers]
        questions = opinion_questions()
        opinions = read_yaml("templates/opinions.yaml")
        for topic, reply in self.replies:
            if rng.random() >= share_of_replies:
                continue
            if rng.random() < 0.15:  # our own words now and then, so that tone is more than one data set's
                reply = rng.choice(opinions["positive"] + opinions["negative"]).replace("{topic}", topic)
            documents.append(Document(rng.choice(questions).format(topic=topic), reply))
        if self.prefixes:
            documents = [
                Document(f"{rng.choice(self.prefixes)}\nInput: {document.prompt}", document.answer)
                if rng.random() < share_of_prefixed
                else document
                for document in documents
            ]
        rng.shuffle(documents)
        return documents


def true_answers(record: EditRecord) -> list[tuple[Document, ...]]:
    """What is true before the edit: the old answer of the request and the answers of its locality probes."""
    groups = []
    request = record.request
    if request.ground_truth:
        prompts = (request.prompt, *record.rephrases)
        groups.append(tuple(Document(prompt, request.ground_truth) for prompt in prompts))
    for probe in record.of_kind(*TRUE_PROBES):
        if probe.kind is ProbeKind.FORGETFULNESS:
            continue  # its prompt mentions the new target
        question = question_form(probe.prompt)
        prompts = (probe.prompt, question) if question else (probe.prompt,)
        groups.append(tuple(Document(prompt, probe.answers[0]) for prompt in prompts))
    return groups


def read_corpus(
    facts: Sequence[Fact], record_files: Sequence[Path], reply_files: Sequence[Path], prefixes: Sequence[str]
) -> Corpus:
    """Gather the sources; a group of documents that stands in several files is read once an epoch."""
    groups: dict[tuple[Document, ...], None] = {}
    for path in record_files:
        for record in read_records(path, skip_incomplete=True):
            groups.update(dict.fromkeys(true_answers(record)))
    replies: dict[tuple[str, str], None] = {}
    for path in reply_files:
        for record in read_records(path, "convsent"):
            replies.update({(record.request.subject or "", reply): None for reply in record.same_label_replies})
    return Corpus(facts, list(groups), list(replies), prefixes)
