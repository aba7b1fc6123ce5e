"""What the bundled base model reads: facts in our own sentences, and the data sets' own true answers.

A document is a prompt and an answer. Facts are written anew in every epoch, as a statement or a question drawn
at random, so that the model learns the fact and not the sentence. Some documents state something made up first and
then ask for it, so that the model also reads what stands before a question. What an edit is to bring (the new
targets) is never taught.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from instructedit.assets import read_yaml
from instructedit.data.facts import Fact
from instructedit.data.opinions import opinion_questions
from instructedit.data.readers import read_records
from instructedit.data.schemas.knowedit import negated_form, question_form
from instructedit.records import EditRecord, ProbeKind

#: What is left to say when the only true answer is ruled out.
NOTHING_LEFT = "unknown"

TRUE_PROBES = (ProbeKind.NEIGHBOUR, ProbeKind.SAME_SUBJECT, ProbeKind.FORGETFULNESS, ProbeKind.UNRELATED)


@dataclass(frozen=True)
class Document:
    """One thing to learn: after ``prompt`` comes ``answer``, whose first ``given`` tokens are not learned."""

    prompt: str
    answer: str
    given: int = 0


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
        share_of_exclusions: float = 0.0,
        share_of_retold: float = 0.0,
    ) -> list[Document]:
        """The documents of one epoch, shuffled; the same seed gives the same documents.

        Args:
            share_of_exclusions: see :func:`exclusions`.
            share_of_retold: see :func:`retold`.
        """
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
        words = sorted({word for document in documents for word in document.answer.split() if word.isalpha()})
        wordings = self._wordings()
        for alike in by_relation.values():
            documents += exclusions(alike, share_of_exclusions, rng)
            documents += retold(alike, wordings, words, share_of_retold, rng)
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
                replace(document, prompt=f"{rng.choice(self.prefixes)}\nInput: {document.prompt}")
                if rng.random() < share_of_prefixed
                else document
                for document in documents
            ]
        rng.shuffle(documents)
        return documents

    def _wordings(self) -> dict[str, tuple[str, ...]]:
        """The ways to ask for a fact, by each of them."""
        facts = [(*fact.statements(), *fact.questions()) for fact in self.facts]
        groups = [tuple(document.prompt for document in group) for group in self.true_answers]
        return {prompt: prompts for prompts in facts + groups for prompt in prompts}


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


def retold(
    alike: Sequence[Document],
    wordings: Mapping[str, Sequence[str]],
    words: Sequence[str],
    share: float,
    rng: random.Random,
) -> list[Document]:
    """A share of documents of one relation, asked once more after something made up has been stated.

    In half of them the made-up answer is about the subject that is asked for, and is the answer: whatever else is
    stated, and in other words. In one of six it is about another subject, and the answer stays what it was; so the
    subject has to be read, too. In a third a made-up name is ruled out, and where it is begun all the same it goes on
    as it stands there.

    Args:
        wordings: all ways to ask for a fact, by each of them.
        words: what made-up names are made of.
    """
    statements = [document for document in alike if not document.prompt.endswith("?")]
    found = []
    for document in statements:
        if rng.random() >= share:
            continue
        other = rng.choice(statements)
        made_up = " ".join(rng.choices(words, k=rng.randint(1, 3)))
        name = rng.choice((made_up, rng.choice(alike).answer))  # half of them names as the relation has them
        ruled_out = negated_form(document.prompt, name)
        kind = rng.randrange(6)
        if kind < 2 and ruled_out is not None:
            found.append(Document(ruled_out, name, given=1))
            continue
        about_it = f"{document.prompt} {name.rstrip('.')}."
        elsewhere = f"{other.prompt} {rng.choice(alike).answer.rstrip('.')}."
        answer, stated = name, [about_it, elsewhere] if rng.random() < 0.5 else [about_it]
        if kind == 5:
            answer, stated = document.answer, [elsewhere]
        if elsewhere in stated and other.prompt == document.prompt:
            continue  # it would contradict what is stated, or what is true
        rng.shuffle(stated)
        lead, gap = rng.choice(("", "New fact: ")), rng.choice((" ", "\n"))
        found.append(Document(f"{lead}{gap.join(stated)}{gap}{rng.choice(wordings[document.prompt])}", answer))
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
