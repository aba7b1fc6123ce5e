"""Subject-relation-object triples, their bundled table, and prompt templates for them."""

from __future__ import annotations

import csv
import gzip
import io
import random
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from instructedit.assets import ASSETS, read_yaml
from instructedit.errors import DataError
from instructedit.records import EditRecord
from instructedit.storage.reading import as_mapping, parse_json, read_bytes, read_text, short_repr
from instructedit.storage.writing import write_atomically

FACTS_FILE = ASSETS / "facts.tsv.gz"
COLUMNS = ("source", "relation", "subject", "object")

#: For relations that are known by a name only (KnowEdit's); T-REx relations have templates of their own.
NAMED_STATEMENTS = (
    "The {relation} of {subject} is",
    "{subject}'s {relation} is",
    "As for {subject}, the {relation} is",
)
NAMED_QUESTIONS = (
    "What is the {relation} of {subject}?",
    "Can you tell me the {relation} of {subject}?",
)


@dataclass(frozen=True)
class Fact:
    """One triple.

    Attributes:
        source: the data set that it comes from; ``trex`` for T-REx.
        relation: a Wikidata property (``P17``) or, for KnowEdit's facts, the relation's name.
        subject: the entity that the fact is about.
        object: the fact's answer.
    """

    source: str
    relation: str
    subject: str
    object: str

    def statements(self) -> tuple[str, ...]:
        """Return sentences that the object completes."""
        return self._render("statements", NAMED_STATEMENTS)

    def sentence(self, rng: random.Random) -> str:
        """Return a whole sentence that states the fact, one of :meth:`statements` at random."""
        return f"{rng.choice(self.statements())} {self.object}."

    def questions(self) -> tuple[str, ...]:
        """Return questions that the object answers."""
        return self._render("questions", NAMED_QUESTIONS)

    def _render(self, kind: str, named: tuple[str, ...]) -> tuple[str, ...]:
        templates = relation_templates().get(self.relation, {}).get(kind, named)
        return tuple(
            template.replace("{subject}", self.subject).replace("{relation}", self.relation) for template in templates
        )


@cache
def relation_templates() -> dict[str, dict[str, tuple[str, ...]]]:
    """Return statement and question templates by Wikidata property."""
    return {
        relation: {kind: tuple(entry[kind]) for kind in ("statements", "questions")}
        for relation, entry in read_yaml("templates/relations.yaml").items()
    }


def read_facts(path: Path = FACTS_FILE) -> list[Fact]:
    """Return the facts of a gzipped tab-separated table with the columns of :data:`COLUMNS`.

    Raises:
        DataError: the file cannot be read or has other columns.
    """
    try:
        text = gzip.decompress(read_bytes(path)).decode()
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8 text (byte {error.start} of the unpacked content)", file=path) from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot be read: {error}; the file is damaged, copy it again", file=path) from None
    table = csv.reader(io.StringIO(text, newline=""), delimiter="\t")
    try:
        header = tuple(next(table, ()))
        if header != COLUMNS:
            raise DataError(f"has the columns {short_repr(header)}, expected {COLUMNS}", file=path)
        facts = []
        for row in table:
            if len(row) != len(COLUMNS) or not all(row):
                raise DataError(
                    f"line {table.line_num}: expected {len(COLUMNS)} columns of strings, found {short_repr(row)}",
                    file=path,
                )
            facts.append(Fact(*row))
    except csv.Error as error:
        raise DataError(f"line {table.line_num}: {error}", file=path) from None
    return facts


def write_facts(facts: Iterable[Fact], path: Path) -> None:
    """Write the table of facts; the same facts give the same bytes."""
    text = io.StringIO()
    table = csv.writer(text, delimiter="\t", lineterminator="\n")
    table.writerow(COLUMNS)
    table.writerows((fact.source, fact.relation, fact.subject, fact.object) for fact in facts)
    write_atomically(path, gzip.compress(text.getvalue().encode(), mtime=0))


def read_trex(folder: Path) -> list[Fact]:
    """Return T-REx facts as ParaRel publishes them, a JSON Lines file per relation.

    Only relations that have templates are read. A subject with several objects in one relation has no single
    right answer and is left out.

    Raises:
        DataError: a file is missing, or a line in it is not a fact.
    """
    facts: list[Fact] = []
    for relation in relation_templates():
        objects: dict[str, set[str]] = defaultdict(set)
        file = folder / f"{relation}.jsonl"
        for number, line in enumerate(read_text(file).split("\n"), start=1):
            if not line.strip():
                continue
            place = f"line {number}"
            row = as_mapping(parse_json(line, file=file, place=place), file)
            labels = [row.get(name) for name in ("sub_label", "obj_label")]
            if not all(isinstance(label, str) for label in labels):
                raise DataError(f"{place}: expected strings in `sub_label` and `obj_label`", file=file)
            subject, answer = (str(label).strip() for label in labels)
            objects[subject].add(answer)
        facts += [
            Fact("trex", relation, subject, answers.pop())
            for subject, answers in sorted(objects.items())
            if len(answers) == 1 and "\t" not in subject
        ]
    return facts


def named_facts(records: Iterable[EditRecord], source: str) -> list[Fact]:
    """Return the true facts that KnowEdit's locality probes ask for, where the prompt names the relation plainly.

    Edit targets are not read: the base model must not be taught them.
    """
    facts: dict[tuple[str, str], set[str]] = defaultdict(set)
    for record in records:
        subject = record.request.subject
        if not subject or "\t" in subject:
            continue
        pattern = re.compile(rf"The (?:names? of the )?([a-z ]+) of {re.escape(subject)} (?:is|are)")
        for probe in record.probes:
            match = pattern.fullmatch(probe.prompt)
            if match and probe.kind.value == "same_subject":
                facts[match[1], subject].add(probe.answers[0].strip())
    return [
        Fact(source, relation, subject, answers.pop())
        for (relation, subject), answers in sorted(facts.items())
        if len(answers) == 1
    ]


@cache
def shipped_facts() -> tuple[Fact, ...]:
    """Return the facts that ship with the package; they are read once, which takes a third of a second."""
    return tuple(read_facts())
