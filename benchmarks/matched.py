"""Two editors at matched locality: the second one's edits are made smaller or larger until it keeps as much.

    python benchmarks/matched.py --of bundled --minus bundled-mend --out docs/results/matched.json
    python benchmarks/matched.py --of A0.safetensors A1.safetensors --minus B0.safetensors B1.safetensors --out m.json

One editor may reach more paraphrases only because its edits are larger, and then it reaches more neighbours, too.
Every step size of an editor is multiplied by the same factors, which draws its curve of Reliability and
Generalization against Locality. Where the second editor's curve passes the first one's own Locality, its scores are
read between the two neighbouring factors, edit by edit, so that the difference is a paired one. The intervals are of
a bootstrap over edits that matches anew in every resample: which factor matches is itself estimated. Several files are
seeds of one editor: an edit's scores are averaged over them first.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import statistics
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from instructedit.data.locations import find_data
from instructedit.editors.base import Editor
from instructedit.editors.saving import digest_of, load_trained_editor
from instructedit.evaluation.intervals import estimate
from instructedit.evaluation.metrics import MetricGroup, registered_metrics
from instructedit.evaluation.protocols import Protocol
from instructedit.evaluation.runner import evaluate
from instructedit.models.language_model import LanguageModel, load_language_model
from instructedit.records import EditRecord
from instructedit.storage.writing import write_atomically
from instructedit.tasks.edits import read_edits
from instructedit.tasks.loading import load_task, shipped_tasks

TASKS = ("counterfact", "recent", "convsent", "zsre")
METRICS = ("reliability", "generalization", "locality")
#: Of the trained step size.
FACTORS = (1.5, 1.25, 1.0, 0.85, 0.7, 0.55, 0.4)

#: An edit's scores by metric.
Scores = dict[str, dict[str, float]]


def resized(editor: Editor, factor: float) -> Editor:
    """The editor with every step size alpha = exp(log_lr) times ``factor``; the editor itself is left as it is."""
    copy = deepcopy(editor)
    log_lr = copy.get_parameter("log_lr")
    with torch.no_grad():
        log_lr += math.log(factor)
    return copy


def scores(
    editors: Sequence[Editor], factor: float, model: LanguageModel, task: str, edits: list[EditRecord], how: Protocol
) -> Scores:
    """Every edit's scores, averaged over the editors."""
    core = registered_metrics(MetricGroup.CORE)
    found = [
        evaluate(resized(editor, factor), model, load_task(task), edits, protocol=how, metrics=core).records
        for editor in editors
    ]
    return {
        edit: {metric: statistics.fmean(each[edit][metric] for each in found) for metric in METRICS if metric in row}
        for edit, row in found[0].items()
    }


def mean(found: Scores, metric: str) -> float:
    """Over the edits that have the metric."""
    return statistics.fmean(row[metric] for row in found.values() if metric in row)


def between(first: Scores, second: Scores, share: float) -> Scores:
    """Edit by edit, ``share`` of the way from the first scores to the second."""
    return {
        edit: {metric: value + share * (second[edit][metric] - value) for metric, value in row.items()}
        for edit, row in first.items()
    }


def matched(curve: Mapping[float, Scores], locality: float) -> tuple[float, Scores] | None:
    """Factor and scores where the curve first passes ``locality``, from large edits to small; None where never."""
    factors = sorted(curve, reverse=True)
    for large, small in itertools.pairwise(factors):
        low, high = mean(curve[large], "locality"), mean(curve[small], "locality")
        if low <= locality <= high:
            share = (locality - low) / (high - low) if high > low else 0.0
            return large + share * (small - large), between(curve[large], curve[small], share)
    return None


def compared(first: Scores, second: Scores) -> dict[str, dict[str, float]]:
    """Paired differences, metric by metric."""
    return {
        metric: estimate(
            [row[metric] - second[edit][metric] for edit, row in sorted(first.items()) if metric in row]
        ).as_dict()
        for metric in METRICS
    }


def compared_at_match(
    of: Scores, curve: Mapping[float, Scores], resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Differences at equal Locality, with the match made anew in every resample of the edits.

    Returns:
        Per metric, and for the factor, its mean and 95% interval. A resample whose curve never reaches the Locality
        takes the curve's nearest end.
    """
    edits = sorted(of)
    factors = sorted(curve, reverse=True)
    wanted = _table(of, edits)
    reached = np.stack([_table(curve[factor], edits) for factor in factors])  # (factors, edits, metrics)
    rng = np.random.default_rng(seed)
    draws = [np.arange(len(edits)), *(rng.integers(0, len(edits), len(edits)) for _ in range(resamples))]
    rows = np.array([_at_match(wanted[draw], reached[:, draw], factors) for draw in draws])
    names = ("factor", *METRICS)
    low, high = np.nanpercentile(rows[1:], (2.5, 97.5), axis=0)
    return {
        name: {
            "mean": round(float(rows[0, i]), 5),
            "low": round(float(low[i]), 5),
            "high": round(float(high[i]), 5),
            "count": len(edits),
        }
        for i, name in enumerate(names)
    }


def _table(scores: Scores, edits: Sequence[str]) -> NDArray[np.float64]:
    """(edits, metrics), NaN where an edit lacks a metric."""
    return np.array([[scores[edit].get(metric, math.nan) for metric in METRICS] for edit in edits])


def _at_match(
    wanted: NDArray[np.float64], reached: NDArray[np.float64], factors: Sequence[float]
) -> NDArray[np.float64]:
    """(1 + metrics,) the factor, and the differences of the means there."""
    means = np.nanmean(reached, axis=1)  # (factors, metrics), from large edits to small
    goal = np.nanmean(wanted, axis=0)
    locality = means[:, METRICS.index("locality")]
    place = next((i for i in range(len(factors) - 1) if locality[i] <= goal[-1] <= locality[i + 1]), None)
    if place is None:  # kept by all of them, or by none
        place = 0 if goal[-1] < locality[0] else len(factors) - 2
    gap = locality[place + 1] - locality[place]
    share = float(np.clip((goal[-1] - locality[place]) / gap, 0, 1)) if gap > 0 else 0.0
    there = means[place] + share * (means[place + 1] - means[place])
    factor = factors[place] + share * (factors[place + 1] - factors[place])
    return np.concatenate(([factor], goal - there))


def main() -> None:
    """Draw both curves on every task, match, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--of", nargs="+", required=True, help="editor, or its seeds")
    parser.add_argument("--minus", nargs="+", required=True, help="editor that is matched, or its seeds")
    parser.add_argument("--out", type=Path, required=True, help="write the result as JSON here")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(shipped_tasks()))
    parser.add_argument("--protocol", type=Protocol, choices=list(Protocol), default=Protocol.PLAIN)
    parser.add_argument("--base", default="bundled")
    parser.add_argument("--limit", type=int, default=80, help="test edits a task, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model = load_language_model(options.base)
    first, second = ([load_trained_editor(path, model) for path in paths] for paths in (options.of, options.minus))
    tasks: dict[str, Any] = {}
    for task in options.tasks:
        file = load_task(task).files.test or ""
        edits = read_edits(load_task(task), file, find_data(), skip_incomplete=True)
        edits = random.Random(options.seed).sample(edits, min(options.limit, len(edits)))
        curves = [
            {
                factor: scores(editors, factor, model, task, edits, options.protocol)
                for factor in tqdm(FACTORS, desc=f"{task}, {name}", unit="factor")
            }
            for name, editors in (("of", first), ("minus", second))
        ]
        own = curves[0][1.0]
        match = matched(curves[1], mean(own, "locality"))
        tasks[task] = {
            "curves": [
                {
                    factor: {metric: round(mean(found, metric), 5) for metric in METRICS}
                    for factor, found in curve.items()
                }
                for curve in curves
            ],
            "as trained": compared(own, curves[1][1.0]),
            "matched": None if match is None else compared_at_match(own, curves[1]),
        }
        shown = tasks[task]["matched"] or tasks[task]["as trained"]
        print(
            task, {m: [round(100 * shown[m][end], 1) for end in ("mean", "low", "high")] for m in METRICS}, flush=True
        )
    result = {
        "of": options.of,
        "minus": options.minus,
        "digests": {path: digest_of(path) for path in (*options.of, *options.minus)},
        "base": model.fingerprint,
        "protocol": str(options.protocol),
        "edits": options.limit,
        "seed": options.seed,
        "interval": "95%, bootstrap over edits",
        "tasks": tasks,
    }
    write_atomically(options.out, (json.dumps(result, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
