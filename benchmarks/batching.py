"""Whether an edit and its answers depend on what else is in the batch, and on the side of the padding.

    python benchmarks/batching.py --base smollm2-135m-instruct --editor smollm2 --out docs/results/batching-smollm2.json

Every edit is made alone and among all edits at once. Its prompt, a paraphrase and a neighbour are answered by greedy
decoding one at a time and 64 at a time, and scored with padding on the right and on the left. Counted are equal
answers, and equal most probable tokens at the target's positions. Rounding depends on the shape of a batch, so in
bfloat16 a tie may fall the other way; float32 shows whether anything else does.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from result_files import write_result
from torch import Tensor

from instructedit.data.locations import find_data
from instructedit.editors.base import Edits
from instructedit.editors.lookup import load_editor
from instructedit.editors.saving import digest_of
from instructedit.evaluation.generation import generate, natural_stop
from instructedit.models.language_model import LanguageModel, load_language_model
from instructedit.models.text import pad
from instructedit.records import EditRecord, ProbeKind
from instructedit.tasks.edits import read_edits
from instructedit.tasks.loading import load_task

BATCH = 64


def questions(record: EditRecord) -> list[tuple[str, str]]:
    """Return prompts with an answer: the edit's own, a paraphrase's, a neighbour's."""
    target, neighbour = record.request.target, record.of_kind(ProbeKind.NEIGHBOUR)[0]
    return [
        (record.request.prompt, target),
        (record.rephrases[0], target),
        (neighbour.prompt, neighbour.answers[0]),
    ]


@torch.no_grad()
def predictions(
    language_model: LanguageModel, edits: Edits, rows: Sequence[int], pairs: Sequence[tuple[str, str]], side: str
) -> list[list[int]]:
    """Return the most probable tokens at the positions of each answer."""
    batch = pad([language_model.text.encode_pair(*pair) for pair in pairs], language_model.text.pad_id, side)
    with edits.attached(language_model, torch.tensor(rows)):
        best: Tensor = language_model.split(0).full(batch).argmax(-1)
    return [best[batch.rows == row].tolist() for row in range(len(pairs))]


def measure(base: str, editor: str, dtype: str, records: Sequence[EditRecord], instruction: str) -> dict[str, Any]:
    """Return the counts for one precision."""
    language_model = load_language_model(base, dtype=dtype)
    method = load_editor(editor, language_model)
    requests = [record.request for record in records]
    together = method.edit(language_model, requests, [instruction] * len(requests))
    alone = [method.edit(language_model, [request], [instruction]) for request in requests]
    asked = [(row, *pair) for row, record in enumerate(records) for pair in questions(record)]
    rows, pairs = [row for row, *_ in asked], [(prompt, answer) for _, prompt, answer in asked]
    prompts = [prompt for prompt, _ in pairs]
    many = generate(language_model, prompts, edits=together, rows=rows, new_tokens=12, batch_size=BATCH)
    one = [
        generate(language_model, [prompt], edits=alone[row], rows=[0], new_tokens=12)[0]
        for row, prompt in zip(rows, prompts, strict=True)
    ]
    right, left = (
        [
            found
            for start in range(0, len(pairs), BATCH)
            for found in predictions(
                language_model, together, rows[start : start + BATCH], pairs[start : start + BATCH], side
            )
        ]
        for side in ("right", "left")
    )
    single = [
        predictions(language_model, alone[row], [0], [pair], "right")[0] for row, pair in zip(rows, pairs, strict=True)
    ]
    return {
        "dtype": dtype,
        "prompts": len(pairs),
        "answers of one at a time and of 64": sum(
            natural_stop(a) == natural_stop(b) for a, b in zip(many, one, strict=True)
        ),
        "tokens of right and left padding": sum(a == b for a, b in zip(right, left, strict=True)),
        "tokens of one at a time and of 64": sum(a == b for a, b in zip(right, single, strict=True)),
    }


def main() -> None:
    """Measure both precisions and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="write the result as JSON here")
    parser.add_argument("--base", required=True)
    parser.add_argument("--editor", required=True)
    parser.add_argument("--limit", type=int, default=BATCH, help="test edits of counterfact, drawn with seed 0")
    options = parser.parse_args()
    task = load_task("counterfact")
    file = task.files.test or ""
    records = [
        record
        for record in read_edits(task, file, find_data(), skip_incomplete=True)
        if record.rephrases and record.of_kind(ProbeKind.NEIGHBOUR)
    ]
    records = random.Random(0).sample(records, min(options.limit, len(records)))
    instruction = task.instructions.render_held_out()
    rows = []
    for dtype in ("float32", "bfloat16"):
        rows.append(measure(options.base, options.editor, dtype, records, instruction))
        print(rows[-1], flush=True)
    language_model = load_language_model(options.base)
    digest = digest_of(options.editor)
    write_result(options.out, language_model, rows, editor=options.editor, editor_digest=digest, file=file, seed=0)


if __name__ == "__main__":
    main()
