"""CounterFact (Meng et al. 2022), as ROME publishes it and as EasyEdit does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from instructedit.data.rows import Row
from instructedit.data.schemas.schema import Schema
from instructedit.records import EditRecord, EditRequest, Probe, ProbeKind


def _read_rome(rows: Sequence[Row]) -> Iterator[EditRecord]:
    """Read rows with a prompt template that has a subject slot, and lists of paraphrases and neighbours."""
    for row in rows:
        rewrite = Row(row.mapping("requested_rewrite"), row.file, row.index)
        subject = rewrite.text("subject")
        target, true_answer = (_object(row, rewrite, field) for field in ("target_new", "target_true"))
        yield EditRecord(
            record_id=str(row.fields.get("case_id", row.index)),
            request=EditRequest(
                prompt=rewrite.text("prompt").replace("{}", subject),
                target=target,
                subject=subject,
                ground_truth=true_answer,
            ),
            rephrases=row.texts("paraphrase_prompts"),
            probes=tuple(
                Probe(kind=ProbeKind.NEIGHBOUR, prompt=prompt, answers=(true_answer,))
                for prompt in row.texts("neighborhood_prompts")
            ),
        )


def _object(row: Row, rewrite: Row, field: str) -> str:
    """Return the text of ``{"str": text}``."""
    value = rewrite.fields.get(field)
    text = Row(value, row.file, row.index).optional_text("str") if isinstance(value, dict) else None
    if text is None:
        raise row.error(f"requested_rewrite.{field}", "expected an object with `str`")
    return text


def _read_easyedit(rows: Sequence[Row]) -> Iterator[EditRecord]:
    """Read rows with one paraphrase and one same-object neighbour each."""
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


COUNTERFACT_ROME = Schema("counterfact-rome", (frozenset({"requested_rewrite"}),), _read_rome)
COUNTERFACT_EASYEDIT = Schema(
    "counterfact-easyedit",
    (frozenset({"prompt", "target_new", "locality_prompt", "locality_ground_truth"}),),
    _read_easyedit,
)
