"""The edits that ship with the package, made from the facts table, each kind a JSON Lines file."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from instructedit.base_model.recipe import ShippedEdits
from instructedit.data.bundled_edits import FactEdits, named_requests
from instructedit.data.facts import Fact
from instructedit.data.readers import read_records
from instructedit.data.scope_edits import ScopeEdits
from instructedit.records import EditRecord, ProbeKind
from instructedit.storage.writing import write_atomically

EDITS_PER_KIND = 150
SCOPE_SUBJECTS = 1500
SCOPE_TRAINING = 3000


def without_training_prompts(tests: Sequence[EditRecord], training: Sequence[EditRecord]) -> list[EditRecord]:
    """Return the test records without probes whose prompts occur in training, and without those whose request does."""
    trained = {probe.prompt for record in training for probe in record.probes}
    trained |= {prompt for record in training for prompt in (record.request.prompt, *record.rephrases)}
    portability = (ProbeKind.REASONING, ProbeKind.LOGICAL)
    remaining = [
        record.model_copy(
            update={"probes": tuple(p for p in record.probes if p.kind not in portability or p.prompt not in trained)}
        )
        for record in tests
        if record.request.prompt not in trained
    ]
    return [record for record in remaining if record.of_kind(*portability)]


def write_shipped_edits(facts: Sequence[Fact], recipe: ShippedEdits, data: Path, out: Path) -> None:
    """Write the shipped edits, one JSON Lines file per kind; the same facts and files give the same edits.

    Those of ``scope-train`` are for training: their subjects are in no test file, nor in the other kinds.

    Args:
        facts: The facts table.
        recipe: Sources, and subjects to avoid.
        data: The data folder.
        out: Folder for the files.

    Raises:
        DataError: A source is missing or wrong, or ``out`` cannot be written.
    """

    def subjects(files: Sequence[str]) -> set[str]:
        records = (record for name in files for record in read_records(data / name, skip_incomplete=True))
        return {record.request.subject or "" for record in records}

    avoid = subjects(recipe.avoid)
    maker = FactEdits(facts, avoid)
    topics = sorted({record.request.subject or "" for record in read_records(data / recipe.topics)})
    missing = named_requests(read_records(data / recipe.recent))
    kinds = {
        "counterfact": maker.counterfactual(EDITS_PER_KIND),
        "questions": maker.questions(EDITS_PER_KIND),
        "recent": maker.recent(missing, EDITS_PER_KIND),
        "convsent": maker.opinions(topics, EDITS_PER_KIND),
    }
    taken = subjects(recipe.tests) | {record.request.subject or "" for records in kinds.values() for record in records}
    scopes = ScopeEdits(facts)
    usable = [subject for subject in scopes.subjects() if subject not in taken]
    untrained = [subject for subject in usable if subject not in avoid]
    tested = set(random.Random(0).sample(untrained, min(SCOPE_SUBJECTS, len(untrained) // 2)))
    kinds["scope-test"] = scopes.records(tested, 2 * EDITS_PER_KIND)
    kinds["scope-train"] = scopes.records(set(usable) - tested, SCOPE_TRAINING)
    kinds["scope-test"] = without_training_prompts(kinds["scope-test"], kinds["scope-train"])
    for kind, records in kinds.items():
        lines = "".join(record.model_dump_json(exclude_defaults=True) + "\n" for record in records)
        write_atomically(out / f"{kind}.jsonl", lines.encode())
