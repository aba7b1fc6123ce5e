"""KnowEdit (Zhang et al. 2024): WikiData-counterfact, WikiRecent and its ZsRE (with ``rephrase_prompt``)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from instructedit.data.rows import Row, is_number
from instructedit.data.schemas.schema import Schema
from instructedit.records import EditRecord, EditRequest, Probe, ProbeKind

_LOCALITY_KINDS = {
    "Relation_Specificity": ProbeKind.SAME_SUBJECT,
    "Forgetfulness": ProbeKind.FORGETFULNESS,
    "neighborhood": ProbeKind.NEIGHBOUR,
}
_PORTABILITY_KINDS = {
    "Reasoning": ProbeKind.REASONING,
    "Subject_Aliasing": ProbeKind.SUBJECT_ALIAS,
    "Logical_Generalization": ProbeKind.LOGICAL,
}


def question_form(prompt: str) -> str | None:
    """Return ``What is the spouse of X?`` for ``The spouse of X is``, None for a prompt of another pattern.

    KnowEdit's training files and the rebuilt WikiRecent test file carry no paraphrase; their prompts follow
    one pattern, so its question form serves as one.
    """
    match = re.fullmatch(r"[Tt]he (.+) (is|are)", prompt.strip())
    return f"What {match[2]} the {match[1]}?" if match else None


def negated_form(prompt: str, excluded: str) -> str | None:
    """Return ``The spouse of X, which is not Y, is`` for ``The spouse of X is``, None for another pattern.

    The pattern of KnowEdit's Forgetfulness probes.
    """
    match = re.fullmatch(r"([Tt]he .+) (?:is|are)", prompt.strip())
    return f"{match[1]}, which is not {excluded}, is" if match else None


def _read(rows: Sequence[Row]) -> Iterator[EditRecord]:
    for row in rows:
        prompt = row.text("prompt")
        rephrases = row.texts("rephrase") or row.texts("rephrase_prompt")
        question = question_form(prompt)
        true_answers = _aliases(row.fields.get("ground_truth"))
        yield EditRecord(
            record_id=str(row.fields.get("case_id", row.index)),
            request=EditRequest(
                prompt=prompt,
                target=row.text("target_new"),
                subject=row.optional_text("subject"),
                ground_truth=true_answers[0] if true_answers else None,
            ),
            rephrases=rephrases or ((question,) if question else ()),
            probes=(
                *_probes(row, "locality", _LOCALITY_KINDS, ProbeKind.UNRELATED),
                *_probes(row, "portability", _PORTABILITY_KINDS, ProbeKind.REASONING),
            ),
        )


def _probes(row: Row, field: str, kinds: Mapping[str, ProbeKind], default: ProbeKind) -> Iterator[Probe]:
    for name, entries in row.mapping(field).items():
        if not isinstance(entries, list):
            entries = [entries]
        for entry in entries:
            if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str):
                raise row.error(f"{field}.{name}", "expected objects with `prompt` and `ground_truth`")
            answers = _aliases(entry.get("ground_truth"))
            if answers and entry["prompt"].strip():  # some published probes come without an answer
                yield Probe(kind=kinds.get(name, default), prompt=entry["prompt"], answers=answers)


def _aliases(value: Any) -> tuple[str, ...]:
    """Return the aliases of the first right answer in a string, a list of strings or a list of alias lists.

    KnowEdit writes all three. A list of strings is a list of aliases of one answer; in a list of lists the
    first list is the answer that is scored, as one probe has one answer.
    """
    while isinstance(value, (list, tuple)) and value and isinstance(value[0], (list, tuple)):
        value = value[0]
    values = value if isinstance(value, (list, tuple)) else [value]
    return tuple(str(alias) for alias in values if is_number(alias) or (isinstance(alias, str) and alias.strip()))


KNOWEDIT = Schema(
    "knowedit",
    (frozenset({"prompt", "target_new", "locality"}), frozenset({"prompt", "target_new", "portability"})),
    _read,
)
