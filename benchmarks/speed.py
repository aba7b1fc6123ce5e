"""Seconds per applied edit, per evaluated edit and per training step on the bundled model.

    python benchmarks/speed.py --out speed.json

Each figure is the median over repetitions, with the smallest and largest beside it.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from instructedit.editors.files import load_editor
from instructedit.evaluation.runner import evaluate
from instructedit.models.language_model import load_language_model
from instructedit.tasks.own_edits import EDITS
from instructedit.tasks.pool import RecordPool
from instructedit.tasks.readers import read_records
from instructedit.tasks.task import load_task
from instructedit.training.mixture import Source, draw
from instructedit.training.objective import compute
from instructedit.training.recipe import Objective


def seconds(work: Callable[[], Any], repetitions: int) -> dict[str, float]:
    """Median, minimum and maximum wall time of ``work``, after one warm-up."""
    work()
    times = []
    for _ in range(repetitions):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return {"median": statistics.median(times), "low": min(times), "high": max(times)}


def main() -> None:
    """Run all measurements and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the result as JSON here")
    parser.add_argument("--edits", type=int, default=32, help="edits at a time")
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    model = load_language_model("bundled")
    editor = load_editor("bundled", model)
    task = load_task("counterfact")
    records = read_records(EDITS / "counterfact.jsonl")[: options.edits]
    requests = [record.request for record in records]
    texts = [task.instructions.unseen(request) for request in requests]
    examples = draw([Source(task, RecordPool(records))], [1.0], options.edits, Objective(), 0.0, random.Random(0))

    def train_step() -> None:
        editor.train()
        deltas = editor(model, [e.request for e in examples], [e.instruction for e in examples])
        compute(editor, model, deltas, examples, Objective()).total.backward()
        editor.zero_grad()
        editor.eval()

    work: dict[str, Callable[[], Any]] = {
        "edit": lambda: editor.edit(model, requests, texts),
        "evaluate": lambda: evaluate(editor, model, task, records, headlines_only=True),
        "train": train_step,
    }
    result = {
        "machine": {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
        "versions": {name: version(name) for name in ("instructedit", "torch", "transformers")},
        "edits": options.edits,
        "repetitions": options.repetitions,
        "milliseconds_an_edit": {
            name: {
                key: round(1000 * value / options.edits, 3) for key, value in seconds(job, options.repetitions).items()
            }
            for name, job in work.items()
        },
    }
    text = json.dumps(result, indent=2)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
