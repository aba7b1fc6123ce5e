"""How many edits hold at once: ours, MEND, MEMIT, LoRA, GRACE and retrieval, for 1 edit up to 1,000.

    python benchmarks/many_edits.py --counts 1 10 100 --out docs/results/many-edits.json
    python benchmarks/many_edits.py --base smollm2-135m-instruct --dtype bfloat16 --counts 10 100 --out FILE
    python benchmarks/many_edits.py --editors bundled-mend memit lora --orders batch sequence --counts 100 --out FILE

The edits are drawn from the test file with seed 0; larger counts contain the smaller ones. Reliability, Generalization
and Locality are measured with all edits in the model, of at most ``--measured`` of them, drawn at random; so are the
perplexity of ordinary text and the answers to unrelated prompts. What the methods read beside an edit's request is made
from it alone, never from the test's paraphrases and probes. Every cell runs in a process of its own, whose largest
memory is reported. An existing result file is continued: cells that it has are not measured again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from joint_methods import COMBINATIONS, Change, Retrieved, Together, put_together
from result_files import write_result

from instructedit.artifacts import editor_for
from instructedit.data.locations import find_data
from instructedit.editors.base import Editor, Edits
from instructedit.editors.gradient import GradientEditor
from instructedit.editors.lookup import load_editor
from instructedit.editors.saving import digest_of
from instructedit.evaluation.health import compare_models, relative_norm
from instructedit.evaluation.metrics import MetricGroup, registered_metrics
from instructedit.evaluation.runner import evaluate
from instructedit.experiments.processes import end_with_parent
from instructedit.models.language_model import LanguageModel, load_language_model
from instructedit.records import EditRecord, EditRequest
from instructedit.tasks.edits import read_edits
from instructedit.tasks.loading import load_task

METRICS = ("reliability", "generalization", "locality")
ORDERS = ("batch", "sequence")


@dataclass(frozen=True)
class Cell:
    """A method with a number of edits."""

    base: str
    dtype: str
    editor: str
    task: str
    file: str
    how: str
    order: str
    edits: int
    measured: int
    rank: int | None = None
    most_steps: int | None = None

    def draw(self) -> list[EditRecord]:
        """Return the edits; those that are measured come first."""
        records = read_edits(load_task(self.task), self.file, find_data(), skip_incomplete=True)
        return random.Random(0).sample(records, len(records))[: self.edits]


class Fixed(Editor):
    """Answers every request with the same model, which has all edits."""

    name = "fixed"

    def __init__(self, edits: Together, split_layer: int) -> None:
        super().__init__()
        self.edits, self.split_layer = edits, split_layer

    def edit(
        self, language_model: LanguageModel, requests: Sequence[EditRequest], instructions: Sequence[str | None]
    ) -> Edits:
        return self.edits


def measure(cell: Cell, threads: int) -> dict[str, Any]:
    """Make the edits of a cell and measure them."""
    torch.set_num_threads(threads)
    language_model = load_language_model(cell.base, dtype=cell.dtype)
    editor = load_editor(cell.editor, language_model)
    task, records = load_task(cell.task), cell.draw()
    start_memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    requests = [record.request for record in records]
    together = put_together(editor, language_model, requests, task, cell.how, cell.order, cell.rank, cell.most_steps)
    seconds = time.perf_counter() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    scores = evaluate(
        Fixed(together, editor.split_layer), language_model, task, records[: cell.measured],
        metrics=registered_metrics(MetricGroup.CORE),
    )  # fmt: skip
    row = {
        **{key: value for key, value in asdict(cell).items() if key not in ("base", "dtype", "task", "file")},
        "metrics": {metric: scores.metrics[metric].as_dict() for metric in METRICS},
        "seconds": round(seconds, 1), "bytes": together.bytes(),
        "memory_mb": round(memory / 1024), "memory_before_mb": round(start_memory / 1024),
    }  # fmt: skip
    if not isinstance(together, Retrieved):  # which changes questions, not the model
        norm = relative_norm(language_model, together.delta) if isinstance(together, Change) else 0.0
        health = compare_models(language_model, together.everywhere(language_model), norm)
        row |= {"perplexity_increase": round(health.perplexity_increase, 4), "health": health.as_dict()}
    return row


def cells(options: argparse.Namespace, language_model: LanguageModel) -> list[Cell]:
    """Return what is measured, small counts first."""
    task = load_task(options.task)
    chosen = []
    for count in options.counts:
        for name in options.editors or [editor_for(options.base)]:
            trained = isinstance(load_editor(name, language_model), GradientEditor)
            for how in options.how if trained else ["joint"]:
                for order in options.orders:
                    chosen.append(
                        Cell(
                            options.base, options.dtype, name, options.task, options.file or task.files.test or "", how,
                            order, count, min(count, options.measured), options.rank if trained else None,
                            options.most_steps if how == "distil" else None,
                        )
                    )  # fmt: skip
    return chosen


def main() -> None:
    """Measure every cell and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="write the result as JSON here")
    parser.add_argument("--base", default="bundled")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--editors", nargs="+", help="names or files. Default: the shipped editor of the base model")
    parser.add_argument("--how", nargs="+", choices=COMBINATIONS, default=["distil"], help="of trained editors")
    parser.add_argument("--orders", nargs="+", choices=ORDERS, default=["batch"])
    parser.add_argument("--task", default="counterfact")
    parser.add_argument("--file", help="of the data folder, from which the edits are drawn. Default: the test file")
    parser.add_argument("--rank", type=int, help="of every matrix's change, of trained editors. Default: any")
    parser.add_argument("--most-steps", type=int, help="of distillation. Default: three passes over the edits' texts")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 10, 100], help="edits at once")
    parser.add_argument("--measured", type=int, default=100, help="edits whose scores are measured, at most")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    rows = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    language_model = load_language_model(options.base, dtype=options.dtype)
    planned = cells(options, language_model)
    identity = ("editor", "how", "order", "edits", "measured", "rank", "most_steps")
    known = {tuple(row.get(key) for key in identity) for row in rows}
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, fresh, end_with_parent, max_tasks_per_child=1) as processes:
        for cell in planned:
            if tuple(getattr(cell, key) for key in identity) in known:
                continue
            row = processes.submit(measure, cell, options.threads).result()
            row["editor_digest"] = digest_of(cell.editor)
            rows.append(row)
            write_result(options.out, language_model, rows, dtype=options.dtype, file=planned[0].file, seed=0)
            shown = {metric: row["metrics"][metric]["mean"] for metric in METRICS}
            print(cell.editor, cell.how, cell.order, cell.edits, shown, row["seconds"], "s", flush=True)


if __name__ == "__main__":
    main()
