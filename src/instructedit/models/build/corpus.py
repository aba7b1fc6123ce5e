"""What the bundled base model reads: facts in our own sentences, and the data sets' own true answers.

A document is a prompt and an answer. Facts are written anew in every epoch, as a statement or a question drawn
at random, so that the model learns the fact and not the sentence. What an edit is to bring (the new targets)
is never taught.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from instructedit.assets import read_yaml
from instructedit.records import EditRecord, ProbeKind
from instructedit.tasks.facts import Fact
from instructedit.tasks.opinions import opinion_questions
from instructedit.tasks.readers import negated_form, question_form, read_records

#: What is left to say when the only true answer is ruled out.
NOTHING_LEFT = "unknown"

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
        share_of_exclusions: float = 0.25,
    ) -> list[Document]:
        """The documents of one epoch, shuffled; the same seed gives the same documents."""
        rng = random.Random(seed)
        by_relation: dict[str, list[Document]] = defaultdict(list)
        for fact in self.facts:
            forms = fact.questions() if rng.random() < share_of_questions else fact.statements()
            by_relation[fact.relation].append(Document(rng.choice(forms), fact.object))
        for group in self.true_answers:
            document = rng.choice(group)
            # The first words tell the relation in most sentences.
            by_relation[" ".join(document.prompt.split()[:5])].append(document)
        documents = [document for alike in by_relation.values() for document in alike]
        for alike in by_relation.values():
            documents += exclusions(alike, share_of_exclusions, rng)
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


def exclusions(alike: Sequence[Document], share: float, rng: random.Random) -> list[Document]:
    """A share of documents of one relation, asked once more with an answer ruled out (``…, which is not Y, is``).

    In two of three Y is another document's answer, and the answer stays what it was; in the third Y is the answer
    itself, and nothing is left to say. So the clause decides, and a model has to read it.
    """
    found = []
    varied = len({document.answer for document in alike}) > 1
    for document in alike:
        excluded = rng.choice(alike).answer if rng.random() < 2 / 3 else document.answer
        if rng.random() >= share or not varied:
            continue
        prompt = negated_form(document.prompt, excluded)
        if prompt is None and document.prompt.endswith("?"):
            prompt = f"{document.prompt[:-1]}, if not {excluded}?"
        if prompt is not None:
            found.append(Document(prompt, NOTHING_LEFT if excluded == document.answer else document.answer))
    return found


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
