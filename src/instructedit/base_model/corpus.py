"""Training text of the bundled base model: facts in our own templates, and the data sets' own true answers.

A document is a prompt and an answer. In every epoch a fact is phrased anew, as a statement or a question drawn at
random, so that the model learns the fact and not the sentence. Some documents make up a statement and then ask for it,
so that the model also uses context. The new targets of edits are never part of the text.
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

#: The answer when the only true one is ruled out.
NO_ANSWER = "unknown"

TRUE_PROBES = (ProbeKind.NEIGHBOUR, ProbeKind.SAME_SUBJECT, ProbeKind.FORGETFULNESS, ProbeKind.UNRELATED)

#: Share of replies that are drawn from our own templates, so that a tone is more than the replies of one data set.
TEMPLATE_REPLY_SHARE = 0.15


@dataclass(frozen=True)
class Document:
    """A prompt and its answer; the answer's first ``given_tokens`` tokens have no loss."""

    prompt: str
    answer: str
    given_tokens: int = 0


@dataclass(frozen=True)
class Corpus:
    """The sources of a base model's training text.

    Attributes:
        facts: Triples, rendered through templates.
        true_answers: Groups of documents; each group is one fact in the data set's own words (prompt, paraphrase,
            question), and each epoch has one document of it.
        replies: (topic, reply) pairs of ConvSent.
        prefixes: Instructions that precede a few of the documents, as the paper's protocol needs a model that has seen
            some.
    """

    facts: Sequence[Fact]
    true_answers: Sequence[tuple[Document, ...]]
    replies: Sequence[tuple[str, str]]
    prefixes: Sequence[str]

    def epoch(
        self,
        seed: int,
        *,
        question_share: float = 0.4,
        reply_share: float = 0.35,
        prefixed_share: float = 0.02,
        exclusion_share: float = 0.0,
        stated_context_share: float = 0.0,
    ) -> list[Document]:
        """Return the documents of one epoch, shuffled; the same arguments give the same documents.

        Args:
            seed: Decides all draws.
            question_share: Share of facts that are phrased as a question.
            reply_share: Share of the replies that the epoch has.
            prefixed_share: Share of documents that an instruction precedes.
            exclusion_share: See :func:`exclusion_documents`.
            stated_context_share: See :func:`stated_context_documents`.
        """
        rng = random.Random(seed)
        by_relation = self._documents_by_relation(question_share, rng)
        documents = [document for group in by_relation.values() for document in group]
        words = sorted({word for document in documents for word in document.answer.split() if word.isalpha()})
        phrasings = self._phrasings()
        for group in by_relation.values():
            documents += exclusion_documents(group, exclusion_share, rng)
            documents += stated_context_documents(group, phrasings, words, stated_context_share, rng)
        documents += self._reply_documents(reply_share, rng)
        if self.prefixes:
            documents = [
                replace(document, prompt=f"{rng.choice(self.prefixes)}\nInput: {document.prompt}")
                if rng.random() < prefixed_share
                else document
                for document in documents
            ]
        rng.shuffle(documents)
        return documents

    def _documents_by_relation(self, question_share: float, rng: random.Random) -> dict[str, list[Document]]:
        """Return a document per fact and per group of true answers, by relation."""
        by_relation: dict[str, list[Document]] = defaultdict(list)
        for fact in self.facts:
            forms = fact.questions() if rng.random() < question_share else fact.statements()
            by_relation[fact.relation].append(Document(rng.choice(forms), fact.object))
        for group in self.true_answers:
            document = rng.choice(group)
            # The first words identify the relation in most sentences.
            by_relation[" ".join(document.prompt.split()[:5])].append(document)
        return by_relation

    def _reply_documents(self, reply_share: float, rng: random.Random) -> list[Document]:
        """Return a share of the replies, each after a question about its topic."""
        questions = opinion_questions()
        opinions = read_yaml("templates/opinions.yaml")
        documents = []
        for topic, reply in self.replies:
            if rng.random() >= reply_share:
                continue
            if rng.random() < TEMPLATE_REPLY_SHARE:
                reply = rng.choice(opinions["positive"] + opinions["negative"]).replace("{topic}", topic)
            documents.append(Document(rng.choice(questions).format(topic=topic), reply))
        return documents

    def _phrasings(self) -> dict[str, tuple[str, ...]]:
        """Return all phrasings of a fact, by each of them."""
        facts = [(*fact.statements(), *fact.questions()) for fact in self.facts]
        groups = [tuple(document.prompt for document in group) for group in self.true_answers]
        return {prompt: prompts for prompts in facts + groups for prompt in prompts}


def exclusion_documents(relation: Sequence[Document], share: float, rng: random.Random) -> list[Document]:
    """Return a share of documents again, each with an answer ruled out (``…, which is not Y, is``).

    In two of three, Y is another document's answer, and the answer stays the same; in the third, Y is the answer
    itself, and the answer is :data:`NO_ANSWER`. So the clause decides, and the model has to read it.

    Args:
        relation: All documents of one relation.
        share: Share of them.
        rng: Source of randomness.
    """
    documents = []
    has_several_answers = len({document.answer for document in relation}) > 1
    for document in relation:
        excluded = rng.choice(relation).answer if rng.random() < 2 / 3 else document.answer
        if rng.random() >= share or not has_several_answers:
            continue
        prompt = negated_form(document.prompt, excluded)
        if prompt is None and document.prompt.endswith("?"):
            prompt = f"{document.prompt[:-1]}, if not {excluded}?"
        if prompt is not None:
            documents.append(Document(prompt, NO_ANSWER if excluded == document.answer else document.answer))
    return documents


def stated_context_documents(
    relation: Sequence[Document],
    phrasings: Mapping[str, Sequence[str]],
    words: Sequence[str],
    share: float,
    rng: random.Random,
) -> list[Document]:
    """Return a share of documents again, each after a made-up statement.

    In half of them the made-up answer is stated about the subject of the question, and is the answer, whatever else
    is stated and however it is phrased. In one of six it is stated about another subject, and the answer stays the
    same, so the subject matters, too. In a third a made-up name is ruled out, and the answer, once begun with that
    name, continues it as it is spelled in the prompt.

    Args:
        relation: All documents of one relation.
        phrasings: All phrasings of a fact, by each of them.
        words: Words of which made-up names consist.
        share: Share of the relation's statements.
        rng: Source of randomness.
    """
    statements = [document for document in relation if not document.prompt.endswith("?")]
    documents = []
    for document in statements:
        if rng.random() >= share:
            continue
        other = rng.choice(statements)
        made_up = " ".join(rng.choices(words, k=rng.randint(1, 3)))
        name = rng.choice((made_up, rng.choice(relation).answer))  # half of the names are typical of the relation
        ruled_out = negated_form(document.prompt, name)
        kind = rng.randrange(6)
        if kind < 2 and ruled_out is not None:
            documents.append(Document(ruled_out, name, given_tokens=1))
            continue
        same_subject = f"{document.prompt} {name.rstrip('.')}."
        other_subject = f"{other.prompt} {rng.choice(relation).answer.rstrip('.')}."
        answer, context = name, [same_subject, other_subject] if rng.random() < 0.5 else [same_subject]
        if kind == 5:
            answer, context = document.answer, [other_subject]
        if other_subject in context and other.prompt == document.prompt:
            continue  # it would contradict the statement, or the truth
        rng.shuffle(context)
        lead, gap = rng.choice(("", "New fact: ")), rng.choice((" ", "\n"))
        question = rng.choice(phrasings[document.prompt])
        documents.append(Document(f"{lead}{gap.join(context)}{gap}{question}", answer))
    return documents


def true_answers(record: EditRecord) -> list[tuple[Document, ...]]:
    """Return what is true before the edit: the old answer of the request, and the answers of its locality probes."""
    groups = []
    request = record.request
    if request.ground_truth:
        prompts = (request.prompt, *record.rephrases)
        groups.append(tuple(Document(prompt, request.ground_truth) for prompt in prompts))
    for probe in record.of_kind(*TRUE_PROBES):
        if probe.kind is ProbeKind.FORGETFULNESS:
            continue  # its prompt contains the new target
        question = question_form(probe.prompt)
        prompts = (probe.prompt, question) if question else (probe.prompt,)
        groups.append(tuple(Document(prompt, probe.answers[0]) for prompt in prompts))
    return groups


def read_corpus(
    facts: Sequence[Fact], record_files: Sequence[Path], reply_files: Sequence[Path], prefixes: Sequence[str]
) -> Corpus:
    """Read the sources; a group of documents that several files have counts once.

    Args:
        facts: See :class:`Corpus`.
        record_files: Files whose true answers are used.
        reply_files: ConvSent files whose replies are used.
        prefixes: See :class:`Corpus`.

    Raises:
        DataError: A file is missing or wrong.
    """
    groups: dict[tuple[Document, ...], None] = {}
    for path in record_files:
        for record in read_records(path, skip_incomplete=True):
            groups.update(dict.fromkeys(true_answers(record)))
    replies: dict[tuple[str, str], None] = {}
    for path in reply_files:
        for record in read_records(path, "convsent"):
            replies.update({(record.request.subject or "", reply): None for reply in record.same_label_replies})
    return Corpus(facts, list(groups), list(replies), prefixes)
