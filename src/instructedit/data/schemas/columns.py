"""Flat records, as a spreadsheet exports them, read by a mapping from the fields of an edit record to columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import BaseModel, ConfigDict, Field

from instructedit.data.rows import Row
from instructedit.data.schemas.schema import Schema
from instructedit.records import EditRecord, EditRequest, Probe, ProbeKind


class ProbeColumns(BaseModel):
    """The columns of one probe.

    Attributes:
        kind: of the probe.
        prompt: the column of its prompt; a record where it is blank has no such probe.
        answer: the column of its right answer, or of a list of aliases of it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: ProbeKind
    prompt: str
    answer: str


class Columns(BaseModel):
    """Which column holds which field of an edit record.

    Attributes:
        prompt: the edit prompt.
        target: the new answer.
        record_id: an identifier; default the record's position in the file.
        subject: the edited subject.
        ground_truth: the old answer.
        label: the sentiment of the target, ``positive`` or ``negative``.
        rephrases: columns with paraphrases of the prompt, each a text or a list of texts.
        probes: columns of the other queries.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str
    target: str
    record_id: str | None = None
    subject: str | None = None
    ground_truth: str | None = None
    label: str | None = None
    rephrases: tuple[str, ...] = ()
    probes: tuple[ProbeColumns, ...] = Field(())

    def schema_of_file(self) -> Schema:
        """Return the schema that reads files with these columns."""
        return Schema("columns", (frozenset({self.prompt, self.target}),), self._read)

    def _read(self, rows: Sequence[Row]) -> Iterator[EditRecord]:
        for row in rows:

            def optional(column: str | None, row: Row = row) -> str | None:
                return row.optional_text(column) if column is not None else None

            yield EditRecord(
                record_id=optional(self.record_id) or str(row.index),
                request=EditRequest(
                    prompt=row.text(self.prompt),
                    target=row.text(self.target),
                    subject=optional(self.subject),
                    ground_truth=optional(self.ground_truth),
                    label=optional(self.label),
                ),
                rephrases=tuple(text for column in self.rephrases for text in row.texts(column)),
                probes=tuple(self._probes(row)),
            )

    def _probes(self, row: Row) -> Iterator[Probe]:
        for columns in self.probes:
            prompt = row.optional_text(columns.prompt)
            if prompt is None:
                continue
            value = row.fields.get(columns.answer)
            answers = row.texts(columns.answer) if isinstance(value, list) else (row.text(columns.answer),)
            if not answers:
                raise row.error(columns.answer, "missing or blank; every probe needs an answer")
            yield Probe(kind=columns.kind, prompt=prompt, answers=answers)
