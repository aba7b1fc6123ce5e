"""ZsRE in MEND's schema (Mitchell et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from instructedit.data.rows import Row
from instructedit.data.schemas.schema import Schema
from instructedit.records import EditRecord, EditRequest, Probe, ProbeKind


def _read(rows: Sequence[Row]) -> Iterator[EditRecord]:
    """Read rows whose ``alt`` is the new target and whose ``loc`` is an unrelated Natural Questions query."""
    for row in rows:
        true_answers = row.texts("answers")
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
                ground_truth=true_answers[0] if true_answers else None,
            ),
            rephrases=row.texts("rephrase"),
            probes=tuple(probes),
        )


ZSRE_MEND = Schema("zsre-mend", (frozenset({"src", "alt", "loc"}),), _read)
