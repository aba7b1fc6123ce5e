"""Numbers for the direct methods, chosen on edits held out of training files; the test files are not read.

    python benchmarks/tune.py --trials 10 --edits 30 --log docs/results/tuning.jsonl --out recipes/experiments/baselines

Every method gets the same number of trials, drawn at random (the same seed, the same draws) from the grid below; the
method's defaults are always the first trial. A trial's score is the harmonic mean of Reliability, Generalization and
Locality, averaged over tasks: an editor that gives up one of the three scores nothing. A trial in the log is not run
again with the same base model, recipe and number of edits.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from instructedit.data.locations import find_data
from instructedit.editors.base import DirectEditor
from instructedit.editors.registry import editor_class
from instructedit.errors import EditorError
from instructedit.evaluation.metrics import MetricGroup, registered_metrics
from instructedit.evaluation.runner import evaluate
from instructedit.models.language_model import LanguageModel, load_language_model
from instructedit.records import EditRecord
from instructedit.storage.writing import write_atomically
from instructedit.tasks.loading import load_task
from instructedit.training.data import read_sources
from instructedit.training.recipe_file import load_stages

TASKS = ("counterfact", "recent", "convsent")
#: `block` is given as a share of the depth, so that a grid is for models of any depth; `blocks` counts from the top.
GRIDS: dict[str, dict[str, list[Any]]] = {
    "ft": {
        "block": [0.2, 0.4, 0.6, 0.8, 1.0],
        "learning_rate": [5e-4, 2e-3, 1e-2, 3e-2],
        "bound": [5e-4, 2e-3, 1e-2, 3e-2, 1e-1],
        "steps": [25, 50],
    },
    "lora": {
        "rank": [1, 2, 8],
        "learning_rate": [1e-3, 3e-3, 5e-3, 1e-2],
        "steps": [10, 20, 30, 50],
        "blocks": [1, 2, 3],
    },
    "calinet": {
        "block": [0.4, 0.6, 0.8, 1.0],
        "slots": [4, 16, 64],
        "learning_rate": [3e-3, 1e-2, 3e-2],
        "steps": [20, 50],
    },
    "grace": {
        "block": [0.2, 0.4, 0.6, 0.8],
        "radius": [0.5, 1.0, 2.0, 4.0, 8.0],
        "learning_rate": [0.1, 0.3, 1.0],
        "steps": [50, 100],
    },
    "rome": {
        "block": [0.0, 0.2, 0.4, 0.6],
        "learning_rate": [0.1, 0.2, 0.5],
        "steps": [20, 40],
        "decay": [0.0, 0.1, 0.5],
        "clamp_norm_factor": [2.0, 4.0, 8.0],
    },
    "memit": {
        "block": [0.2, 0.4, 0.6],
        "blocks": [2, 3],
        "learning_rate": [0.1, 0.2, 0.5],
        "decay": [0.0, 0.1, 0.5],
        "clamp_norm_factor": [2.0, 4.0],
        "mom2_update_weight": [1.0, 10.0, 100.0, 1000.0],
    },
}


def trials(method: str, count: int, seed: int, depth: int) -> list[dict[str, Any]]:
    """Return the method's defaults, then random draws of the grid for a model of ``depth`` blocks, none twice."""
    rng = random.Random(f"{seed}-{method}")
    found: list[dict[str, Any]] = [{}]
    while len(found) < count:
        drawn = {name: rng.choice(values) for name, values in GRIDS[method].items()}
        if "block" in drawn:
            drawn["block"] = round(drawn["block"] * (depth - 1))
        if drawn not in found:
            found.append(drawn)
    return found


def measured(
    method: str, numbers: dict[str, Any], model: LanguageModel, edits: dict[str, list[EditRecord]]
) -> dict[str, Any]:
    """Scores of one trial."""
    kind = editor_class(method)
    assert issubclass(kind, DirectEditor)
    try:
        editor = kind.create(kind.Config.model_validate(numbers), model)
    except EditorError as error:  # numbers that do not go together
        return {"method": method, "numbers": numbers, "score": 0.0, "fault": str(error)}
    began, tasks = time.perf_counter(), {}
    for name, records in edits.items():
        found = evaluate(editor, model, load_task(name), records, metrics=registered_metrics(MetricGroup.CORE)).metrics
        tasks[name] = {m: found[m].mean for m in ("reliability", "generalization", "locality") if m in found}
    score = statistics.fmean(statistics.harmonic_mean(list(scores.values())) for scores in tasks.values())
    seconds = time.perf_counter() - began
    return {"method": method, "numbers": numbers, "score": score, "tasks": tasks, "seconds": round(seconds, 1)}


def main() -> None:
    """Run the trials that the log lacks; write a YAML file for every method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the methods' YAML files")
    parser.add_argument("--log", type=Path, required=True, help="JSON Lines of all trials")
    parser.add_argument("--base", default="bundled")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--recipe", default="bundled-core", help="whose held-out edits are used")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=list(GRIDS), default=list(GRIDS))
    parser.add_argument("--trials", type=int, default=16, help="a method")
    parser.add_argument("--edits", type=int, default=40, help="a task")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model = load_language_model(options.base, dtype=options.dtype)
    depth = len(model.structure.blocks)
    _, validation = read_sources(load_stages(options.recipe)[-1], find_data())
    edits = {s.task.name: s.pool.records[: options.edits] for s in validation if s.task.name in options.tasks}
    asked = {"base": model.fingerprint, "edits": options.edits, "recipe": options.recipe}
    done: list[dict[str, Any]] = []
    if options.log.is_file():
        done = [json.loads(line) for line in options.log.read_text(encoding="utf-8").splitlines()]
        done = [trial for trial in done if asked.items() <= trial.items()]
    planned = [(m, numbers) for m in options.methods for numbers in trials(m, options.trials, options.seed, depth)]
    options.log.parent.mkdir(parents=True, exist_ok=True)
    for method, numbers in tqdm(planned, unit="trial"):
        if any(trial["method"] == method and trial["numbers"] == numbers for trial in done):
            continue
        done.append({**asked, **measured(method, numbers, model, edits)})
        with options.log.open("a", encoding="utf-8") as log:
            log.write(json.dumps(done[-1]) + "\n")
    for method in options.methods:
        mine = [numbers for name, numbers in planned if name == method]
        best = max(
            (trial for trial in done if trial["method"] == method and trial["numbers"] in mine),
            key=lambda trial: float(trial["score"]),
        )
        note = f"# The best of {options.trials} trials on validation edits: benchmarks/tune.py.\n"
        text = note + yaml.safe_dump({"name": method, **best["numbers"]}, sort_keys=False)
        write_atomically(options.out / f"{method}.yaml", text.encode())
        print(method, f"{best['score']:.3f}", best["numbers"])


if __name__ == "__main__":
    main()
