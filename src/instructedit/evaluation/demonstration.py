"""What the demo shows: a few edits in words, one edit under two scopes, and a table over six tasks."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructedit.assets import read_yaml
from instructedit.data.locations import EDITS
from instructedit.data.readers import read_records
from instructedit.editors.gradient import GradientEditor
from instructedit.errors import DataError
from instructedit.evaluation.generation import generate, natural_stop
from instructedit.evaluation.metrics import MetricGroup, registered_metrics
from instructedit.evaluation.protocols import Control
from instructedit.evaluation.runner import Evaluation, evaluate
from instructedit.models.language_model import LanguageModel
from instructedit.records import EditRecord, EditRequest
from instructedit.tasks.task import load_task

#: The real test files by task, relative to the data folder. No editor that ships has seen them.
TEST_FILES = {
    "counterfact": "counterfact/counterfact-val.json",
    "recent": "wikirecent/recent_test.reconstructed.json",
    "convsent": "convsent/blender_test.json",
    "zsre": "zsre/zsre_mend_eval_portability_gpt4.json",
    "this-fact": "counterfact/counterfact-val.json",
    "rename": "counterfact/counterfact-val.json",
}
#: Sets of our own that ship with the package; the three fact tasks share one.
OWN_FILES = {
    "counterfact": "counterfact.jsonl",
    "recent": "recent.jsonl",
    "convsent": "convsent.jsonl",
    "zsre": "questions.jsonl",
    "this-fact": "counterfact.jsonl",
    "rename": "counterfact.jsonl",
}
HEADLINES = {
    "counterfact": ("reliability", "generalization", "locality"),
    "recent": ("reliability", "generalization", "locality"),
    "convsent": ("reliability", "reliability_before", "generalization", "locality", "sentiment_shift"),
    "zsre": ("reliability", "generalization", "locality"),
    "this-fact": ("reliability", "generalization", "locality", "kept"),
    "rename": ("reliability", "generalization", "locality", "changed"),
}
SWAPPED = {"this-fact": "kept", "rename": "changed"}


@dataclass(frozen=True)
class Shown:
    """One edit in words: each row is (what is asked, why, before, after)."""

    request: EditRequest
    instruction: str
    rows: tuple[tuple[str, str, str, str], ...]


def demo_records(task: str, data: Path | None, count: int, seed: int) -> tuple[list[EditRecord], str]:
    """``count`` test edits of a task and the name of their file: the real one if it is there, else our own.

    Raises:
        DataError: none are known for the task.
    """
    if task not in TEST_FILES:
        raise DataError(f"no test edits are known for task {task}; there are some for {', '.join(TEST_FILES)}")
    real = data / TEST_FILES[task] if data is not None else None
    path = real if real is not None and real.is_file() else EDITS / OWN_FILES[task]
    records = read_records(path)
    if count < len(records):
        records = random.Random(seed).sample(records, count)
    return records, TEST_FILES[task] if path == real else f"own/{OWN_FILES[task]}"


def show(
    editor: GradientEditor,
    language_model: LanguageModel,
    request: EditRequest,
    task_name: str,
    asked: Sequence[tuple[str, str]],
) -> Shown:
    """Make one edit under a task's unseen instruction and ask the edit prompt and ``asked`` before and after."""
    text = load_task(task_name).instructions.unseen(request)
    deltas = editor.edit(language_model, [request], [text])
    questions = [(request.prompt, "request"), *asked]
    prompts = [prompt for prompt, _ in questions]
    before = generate(language_model, prompts, new_tokens=12)
    after = generate(language_model, prompts, edits=deltas, rows=[0] * len(prompts), new_tokens=12)
    rows = tuple(
        (prompt, why, natural_stop(old), natural_stop(new))
        for (prompt, why), old, new in zip(questions, before, after, strict=True)
    )
    return Shown(request, text, rows)


def shown_edits(editor: GradientEditor, language_model: LanguageModel) -> tuple[list[Shown], list[Shown]]:
    """The edits in words of ``assets/demo.yaml``: some plain ones, and one under both scopes."""
    script = read_yaml("demo.yaml")

    def one(entry: dict[str, Any], task: str) -> Shown:
        request = EditRequest(prompt=entry["prompt"], target=entry["target"], subject=entry["subject"])
        asked = [(text, kind) for kind in ("paraphrase", "neighbour", "unrelated") for text in entry.get(kind, ())]
        return show(editor, language_model, request, task, asked)

    plain = [one(entry, entry["task"]) for entry in script["edits"]]
    return plain, [one(script["scope"], task) for task in ("this-fact", "rename")]


def measure(
    editor: GradientEditor,
    language_model: LanguageModel,
    data: Path | None,
    count: int,
    seed: int,
    swapped: bool = True,
    on_task: Callable[[str], None] = lambda name: None,
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The table: headline figures by task.

    Args:
        swapped: also the swapped-instruction control of the scope tasks; an editor that reads none has no use for it.

    Returns:
        figures by task and metric, and the file that each task's edits came from.
    """
    tables: dict[str, dict[str, Any]] = {}
    files: dict[str, str] = {}

    def run(name: str, control: Control) -> Evaluation:
        on_task(name)
        records, files[name] = demo_records(name, data, count, seed)
        return evaluate(
            editor,
            language_model,
            load_task(name),
            records,
            metrics=registered_metrics(MetricGroup.CORE),
            instruction=control,
            seed=seed,
        )

    for name, metrics in HEADLINES.items():
        found = run(name, Control.UNSEEN)
        row = {metric: found.metrics[metric].as_dict() for metric in metrics if metric in found.metrics}
        if swapped and name in SWAPPED:
            metric = SWAPPED[name]
            row[f"{metric}_swapped"] = run(name, Control.SWAPPED_SCOPE).metrics[metric].as_dict()
        tables[name] = row
    return tables, files
