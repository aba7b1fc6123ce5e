"""How many edits hold at once: their sum, and merged by the normal equation.

    python benchmarks/many_edits.py --counts 1 10 25 50 100 --out docs/results/many-edits.json
    python benchmarks/many_edits.py --base smollm2-135m-instruct --dtype bfloat16 --counts 10 50 --out FILE

The edits are drawn from the test file with seed 0; larger counts contain the smaller ones. Each edit's Reliability,
Generalization and Locality are measured with all edits in the model, and the perplexity of ordinary text. The texts of
the merged edits are made from the requests alone, never from the test paraphrases and probes.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from result_files import write_result
from torch import Tensor

from instructedit.artifacts import editor_for
from instructedit.data.locations import find_data
from instructedit.deltas.delta import Delta
from instructedit.editors.base import Editor, Edits
from instructedit.editors.editing import make_edits
from instructedit.editors.gradient import GradientEditor
from instructedit.editors.lookup import find_editor
from instructedit.editors.saving import digest_of
from instructedit.evaluation.health import measure_health
from instructedit.evaluation.metrics import MetricGroup, registered_metrics
from instructedit.evaluation.runner import evaluate
from instructedit.merging.normal_equation import PRESERVE, RIDGE, answers_of, merge
from instructedit.merging.texts import texts_of
from instructedit.models.language_model import LanguageModel, load_language_model
from instructedit.records import EditRequest
from instructedit.tasks.edits import read_edits
from instructedit.tasks.loading import load_task

METRICS = ("reliability", "generalization", "locality")


@dataclass(frozen=True)
class Everywhere:
    """One delta for every row of a batch."""

    delta: Delta
    edits: int

    def __len__(self) -> int:
        return self.edits

    def attached(self, language_model: LanguageModel, rows: Tensor) -> AbstractContextManager[None]:
        return self.delta.attached(language_model)

    def rewrite_prompt(self, edit: int, prompt: str) -> str:
        return prompt


class Fixed(Editor):
    """Answers every request with the same delta, which holds all edits."""

    name = "fixed"

    def __init__(self, delta: Delta, split_layer: int) -> None:
        super().__init__()
        self.delta, self.split_layer = delta, split_layer

    def edit(
        self, language_model: LanguageModel, requests: Sequence[EditRequest], instructions: Sequence[str | None]
    ) -> Edits:
        return Everywhere(self.delta, len(requests))


def main() -> None:
    """Measure every count and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="write the result as JSON here")
    parser.add_argument("--base", default="bundled")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--editor", help="default: the shipped editor of the base model")
    parser.add_argument("--task", default="counterfact")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 10, 25, 50, 100], help="edits at once")
    parser.add_argument("--preserve", type=float, default=PRESERVE, help="weight of everything else")
    parser.add_argument("--without-sum", action="store_true")
    options = parser.parse_args()
    language_model = load_language_model(options.base, dtype=options.dtype)
    name = options.editor or editor_for(options.base)
    editor = find_editor(name, language_model)
    assert isinstance(editor, GradientEditor)
    task = load_task(options.task)
    file = task.files.test or ""
    records = read_edits(task, file, find_data(), skip_incomplete=True)
    records = random.Random(0).sample(records, max(options.counts))
    deltas = make_edits(editor, language_model, [record.request for record in records], task)
    rows: list[dict[str, Any]] = []

    def measure(count: int, how: str, delta: Delta, seconds: float) -> None:
        found = evaluate(
            Fixed(delta, editor.split_layer), language_model, task, records[:count],
            metrics=registered_metrics(MetricGroup.CORE),
        )  # fmt: skip
        numbers = sum(tensor.numel() for factor in delta.factors.values() for tensor in factor.tensors.values())
        metrics = {metric: found.metrics[metric].as_dict() for metric in METRICS}
        health = measure_health(language_model, delta)
        rows.append(
            {"edits": count, "how": how, "metrics": metrics, "seconds": round(seconds, 1), "numbers": numbers,
             "perplexity_increase": round(health.perplexity_increase, 4), "health": health.as_dict()}
        )  # fmt: skip
        shown = {metric: round(100 * found.metrics[metric].mean, 1) for metric in METRICS}
        print(count, how, shown, f"perplexity {health.perplexity_increase:+.1%}", flush=True)

    for count in options.counts:
        if not options.without_sum:
            began = time.perf_counter()
            total = sum(deltas[1:count], start=deltas[0])
            measure(count, "sum", total, time.perf_counter() - began)
        began = time.perf_counter()
        requests = [record.request for record in records[:count]]
        texts = texts_of(requests, language_model, answers_of(editor, requests))
        merged = merge(deltas[:count], texts, language_model, preserve=options.preserve)
        measure(count, "merged", merged, time.perf_counter() - began)
    write_result(
        options.out, language_model, rows, editor=name, editor_digest=digest_of(name), file=file, seed=0,
        preserve=options.preserve, ridge=RIDGE,
    )  # fmt: skip


if __name__ == "__main__":
    main()
