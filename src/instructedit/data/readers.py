"""Readers of the public editing data sets: each published form becomes a list of :class:`EditRecord`.

A form is recognised by its fields, never by its file name. JSON arrays and JSON Lines are both taken. Every
complaint names the file, the record and the field.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from instructedit.data.opinions import opinion_questions
from instructedit.errors import DataError, location_text, shorten
from instructedit.records import EditRecord, EditRequest, Probe, ProbeKind
from instructedit.storage.reading import parse_json, read_text

KNOWEDIT_LOCALITY = {
    "Relation_Specificity": ProbeKind.SAME_SUBJECT,
    "Forgetfulness": ProbeKind.FORGETFULNESS,
    "neighborhood": ProbeKind.NEIGHBOUR,
}
KNOWEDIT_PORTABILITY = {
    "Reasoning": ProbeKind.REASONING,
    "Subject_Aliasing": ProbeKind.SUBJECT_ALIAS,
    "Logical_Generalization": ProbeKind.LOGICAL,
}


@dataclass(frozen=True)
class Row:
    """One raw record, with getters that complain precisely."""

    fields: dict[str, Any]
    file: Path
    index: int

    def error(self, field: str, problem: str) -> DataError:
        return DataError(problem, file=self.file, record=self.index, field=field or None)

    def text(self, field: str) -> str:
        """A string that is not blank."""
        value = self.optional_text(field)
        if value is None:
            raise self.error(field, "missing or blank; it has to be a text")
        return value

    def optional_text(self, field: str) -> str | None:
        value = self.fields.get(field)
        if value is None or value == "":
            return None
        if _is_number(value):
            return str(value)
        if not isinstance(value, str):
            raise self.error(field, f"expected a text, found {type(value).__name__}")
        return value if value.strip() else None

    def texts(self, field: str) -> tuple[str, ...]:
        """A string or a list of strings; blanks are dropped."""
        value = self.fields.get(field) or ()
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, (list, tuple)) or not all(isinstance(text, str) for text in values):
            raise self.error(field, "expected a text or a list of texts")
        return tuple(text for text in values if text.strip())

    def mapping(self, field: str) -> dict[str, Any]:
        value = self.fields.get(field) or {}
        if not isinstance(value, dict):
            raise self.error(field, f"expected an object, found {type(value).__name__}")
        return value


def _aliases(value: Any) -> tuple[str, ...]:
    """Aliases of the first right answer in a string, a list of strings or a list of alias lists.

    KnowEdit writes all three. A list of strings is a list of aliases of one answer; in a list of lists the
    first list is the answer that is scored, as one probe has one answer.
    """
    while isinstance(value, (list, tuple)) and value and isinstance(value[0], (list, tuple)):
        value = value[0]
    values = value if isinstance(value, (list, tuple)) else [value]
    return tuple(str(alias) for alias in values if _is_number(alias) or (isinstance(alias, str) and alias.strip()))


def _is_number(value: Any) -> bool:
    """Whether a value is written as a number that a text can be made of: no truth value, no NaN, no infinity."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def _knowedit_probes(row: Row, field: str, kinds: dict[str, ProbeKind], other: ProbeKind) -> Iterator[Probe]:
    for name, entries in row.mapping(field).items():
        if not isinstance(entries, list):
            entries = [entries]
        for entry in entries:
            where = f"{field}.{name}"
            if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str):
                raise row.error(where, "expected objects with `prompt` and `ground_truth`")
            answers = _aliases(entry.get("ground_truth"))
            if answers and entry["prompt"].strip():  # some published probes come without an answer
                yield Probe(kind=kinds.get(name, other), prompt=entry["prompt"], answers=answers)


def question_form(prompt: str) -> str | None:
    """``The name of the spouse of X is`` -> ``What is the name of the spouse of X?``, else None.

    KnowEdit's training files and the rebuilt WikiRecent test file carry no paraphrase; their prompts follow
    one pattern, so its question form serves as one.
    """
    match = re.fullmatch(r"[Tt]he (.+) (is|are)", prompt.strip())
    return f"What {match[2]} the {match[1]}?" if match else None


def negated_form(prompt: str, excluded: str) -> str | None:
    """``The name of the spouse of X is`` -> ``The name of the spouse of X, which is not Y, is``, else None.

    The pattern of KnowEdit's Forgetfulness probes.
    """
    match = re.fullmatch(r"([Tt]he .+) (?:is|are)", prompt.strip())
    return f"{match[1]}, which is not {excluded}, is" if match else None


def _read_native(rows: Sequence[Row]) -> Iterator[EditRecord]:
    for row in rows:
        try:
            yield EditRecord.model_validate(row.fields)
        except ValidationError as error:
            first = error.errors()[0]
            raise row.error(location_text(first["loc"]), shorten(first["msg"])) from None


def _read_counterfact(rows: Sequence[Row]) -> Iterator[EditRecord]:
    """EasyEdit's CounterFact: one paraphrase and one same-object neighbour a record."""
    for row in rows:
        yield EditRecord(
            record_id=str(row.fields.get("case_id", row.index)),
            request=EditRequest(
                prompt=row.text("prompt"),
                target=row.text("target_new"),
                subject=row.optional_text("subject"),
                ground_truth=row.optional_text("ground_truth"),
            ),
            rephrases=row.texts("rephrase_prompt"),
            probes=(
                Probe(
                    kind=ProbeKind.NEIGHBOUR,
                    prompt=row.text("locality_prompt"),
                    answers=(row.text("locality_ground_truth"),),
                ),
            ),
        )


def _read_counterfact_rome(rows: Sequence[Row]) -> Iterator[EditRecord]:
    """ROME's CounterFact: prompt template with a subject slot, lists of paraphrases and neighbours."""
    for row in rows:
        rewrite = Row(row.mapping("requested_rewrite"), row.file, row.index)
        subject = rewrite.text("subject")
        objects = {}
        for field in ("target_new", "target_true"):
            if not isinstance(rewrite.fields.get(field), dict):
                raise row.error(f"requested_rewrite.{field}", "expected an object with `str`")
            found = Row(rewrite.fields[field], row.file, row.index).optional_text("str")
            if found is None:
                raise row.error(f"requested_rewrite.{field}", "expected an object with `str`")
            objects[field] = found
        yield EditRecord(
            record_id=str(row.fields.get("case_id", row.index)),
            request=EditRequest(
                prompt=rewrite.text("prompt").replace("{}", subject),
                target=objects["target_new"],
                subject=subject,
                ground_truth=objects["target_true"],
            ),
            rephrases=row.texts("paraphrase_prompts"),
            probes=tuple(
                Probe(kind=ProbeKind.NEIGHBOUR, prompt=prompt, answers=(objects["target_true"],))
                for prompt in row.texts("neighborhood_prompts")
            ),
        )


def _read_knowedit(rows: Sequence[Row]) -> Iterator[EditRecord]:
    """KnowEdit's WikiData-counterfact and WikiRecent, and its ZsRE (with ``rephrase_prompt``)."""
    for row in rows:
        prompt = row.text("prompt")
        rephrases = row.texts("rephrase") or row.texts("rephrase_prompt")
        question = question_form(prompt)
        truth = _aliases(row.fields.get("ground_truth"))
        yield EditRecord(
            record_id=str(row.fields.get("case_id", row.index)),
            request=EditRequest(
                prompt=prompt,
                target=row.text("target_new"),
                subject=row.optional_text("subject"),
                ground_truth=truth[0] if truth else None,
            ),
            rephrases=rephrases or ((question,) if question else ()),
            probes=(
                *_knowedit_probes(row, "locality", KNOWEDIT_LOCALITY, ProbeKind.UNRELATED),
                *_knowedit_probes(row, "portability", KNOWEDIT_PORTABILITY, ProbeKind.REASONING),
            ),
        )


def _read_zsre(rows: Sequence[Row]) -> Iterator[EditRecord]:
    """ZsRE in MEND's form; ``alt`` is the new target, ``loc`` an unrelated Natural Questions query."""
    for row in rows:
        answers = row.texts("answers")
        unrelated = row.text("loc").removeprefix("nq question: ")
        portability = Row(row.mapping("portability"), row.file, row.index)
        probes = [Probe(kind=ProbeKind.UNRELATED, prompt=unrelated + "?", answers=(row.text("loc_ans"),))]
        if portability.fields:
            probes.append(
                Probe(
                    kind=ProbeKind.REASONING,
                    prompt=portability.text("New Question"),
                    answers=(portability.text("New Answer"),),
                )
            )
        yield EditRecord(
            record_id=str(row.index),
            request=EditRequest(
                prompt=row.text("src"),
                target=row.text("alt"),
                subject=row.optional_text("subject"),
                ground_truth=answers[0] if answers else None,
            ),
            rephrases=row.texts("rephrase"),
            probes=tuple(probes),
        )


def _read_convsent(rows: Sequence[Row]) -> Iterator[EditRecord]:
    """ConvSent: for each topic one record towards positive and one towards negative replies.

    The wanted reply is one of the topic's own, picked by the record's index so that it is the same in every
    run; the two other-topic probes are replies about the topics 1 and 7 places on.
    """
    replies = [{"positive": row.texts("pos"), "negative": row.texts("neg")} for row in rows]
    topics = [row.text("ent") for row in rows]
    questions = opinion_questions()
    for index, topic in enumerate(topics):
        for label, opposite in (("positive", "negative"), ("negative", "positive")):
            wanted = tuple(reply.strip() for reply in replies[index][label])
            if not wanted:
                continue
            probes = []
            for step, other_label in ((1, label), (7, opposite)):
                other = (index + step) % len(topics)
                if other != index and replies[other][other_label]:
                    probes.append(
                        Probe(
                            kind=ProbeKind.OTHER_TOPIC,
                            prompt=questions[(index + step) % len(questions)].format(topic=topics[other]),
                            answers=(replies[other][other_label][0].strip(),),
                        )
                    )
            yield EditRecord(
                record_id=f"{index}-{label}",
                request=EditRequest(
                    prompt=questions[index % len(questions)].format(topic=topic),
                    target=wanted[index % len(wanted)],
                    subject=topic,
                    label=label,
                ),
                rephrases=tuple(questions[(index + step) % len(questions)].format(topic=topic) for step in (5, 11)),
                probes=tuple(probes),
                same_label_replies=wanted,
                other_label_replies=tuple(reply.strip() for reply in replies[index][opposite]),
            )


@dataclass(frozen=True)
class Form:
    """A published record form: the fields that tell it apart, and its reader."""

    name: str
    fields: frozenset[str]
    read: Callable[[Sequence[Row]], Iterator[EditRecord]]


#: The first form whose fields are all present is taken; a form with more fields stands before a laxer one.
FORMS: tuple[Form, ...] = (
    Form("instructedit", frozenset({"record_id", "request"}), _read_native),
    Form("counterfact-rome", frozenset({"requested_rewrite"}), _read_counterfact_rome),
    Form(
        "counterfact-easyedit",
        frozenset({"prompt", "target_new", "locality_prompt", "locality_ground_truth"}),
        _read_counterfact,
    ),
    Form("convsent", frozenset({"ent", "pos", "neg"}), _read_convsent),
    Form("zsre-mend", frozenset({"src", "alt", "loc"}), _read_zsre),
    Form("knowedit", frozenset({"prompt", "target_new", "locality"}), _read_knowedit),
    Form("knowedit", frozenset({"prompt", "target_new", "portability"}), _read_knowedit),
)


def recognise(row: Row) -> Form:
    """The form of a record, by its fields.

    Raises:
        DataError: no form fits; the known ones are listed with their telling fields. A record that lacks only
            one telling field is told which.
    """
    present = row.fields.keys()
    for form in FORMS:
        if form.fields <= present:
            return form
    for form in FORMS:
        missing = form.fields - present
        if len(form.fields) > 2 and len(missing) == 1:
            raise row.error(next(iter(missing)), f"missing; the other fields are those of a {form.name} record")
    known = "\n".join(f"  {form.name}: {', '.join(sorted(form.fields))}" for form in FORMS)
    fields = shorten(", ".join(sorted(present))) or "(none)"
    raise DataError(
        f"unknown form with the fields {fields}. Known forms, by their fields:\n{known}",
        file=row.file,
        record=row.index,
    )


def read_rows(path: Path) -> list[Row]:
    """The raw records of a JSON array or JSON Lines file.

    Raises:
        DataError: the file is missing, not UTF-8, empty, truncated or not a list of objects.
    """
    content = read_text(path)
    if not content.strip():
        raise DataError("is empty", file=path)
    if content.lstrip().startswith("["):
        values = parse_json(content, file=path)
    else:
        values = [
            parse_json(line, file=path, place=f"line {number}")
            for number, line in enumerate(content.split("\n"), start=1)
            if line.strip()
        ]
    for index, value in enumerate(values):
        if not isinstance(value, dict):
            raise DataError(f"expected an object, found {type(value).__name__}", file=path, record=index)
    if not values:
        raise DataError("holds no records", file=path)
    return [Row(value, path, index) for index, value in enumerate(values)]


def read_records(path: str | Path, form: str | None = None, *, skip_incomplete: bool = False) -> list[EditRecord]:
    """All records of a data file, in its order.

    Args:
        path: a JSON or JSON Lines file in any form of :data:`FORMS`.
        form: insist on this form instead of recognising it.
        skip_incomplete: leave out records that lack a field instead of raising. Published files hold a few;
            for training that is no loss, for an evaluation it has to be a decision.

    Raises:
        DataError: as :func:`read_rows` and :func:`recognise`, or a record lacks a field.
    """
    rows = read_rows(Path(path))
    found = _first_form(rows) if skip_incomplete else recognise(rows[0])
    if form is not None and found.name != form:
        raise DataError(f"is a {found.name} file, expected {form}", file=path)
    for row in rows:
        if not skip_incomplete and recognise(row).name != found.name:
            raise row.error("", f"is a {recognise(row).name} record in a {found.name} file")
    if skip_incomplete:
        rows = [row for row in rows if _is_complete(row, found)]
    return list(found.read(rows))


def _first_form(rows: Sequence[Row]) -> Form:
    """The form of the first record that has one."""
    for row in rows:
        try:
            return recognise(row)
        except DataError:
            continue
    return recognise(rows[0])


def _is_complete(row: Row, form: Form) -> bool:
    try:
        return bool(list(form.read([row])))
    except DataError:
        return False
