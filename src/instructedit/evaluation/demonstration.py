"""The demo's content: a few edits with their answers, one edit under two scopes, and a table over several tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructedit.editors.gradient import GradientEditor
from instructedit.evaluation.generation import generate, natural_stop
from instructedit.evaluation.metrics import MetricGroup, get_metric, registered_metrics
from instructedit.evaluation.protocols import Control
from instructedit.evaluation.runner import Evaluation, evaluate
from instructedit.models.language_model import LanguageModel
from instructedit.records import EditRequest
from instructedit.tasks.edits import sample_test_edits
from instructedit.tasks.loading import listed_tasks, load_task
from instructedit.tasks.task import Task

#: The kinds of prompts of an edit in a demo's script, in the order in which they are shown.
_PROMPT_KINDS = ("paraphrase", "neighbour", "unrelated")
#: The two tasks that the edit under ``scope`` of a demo's script is made as.
_SCOPE_TASKS = ("this-fact", "rename")
_NEW_TOKENS = 12


@dataclass(frozen=True)
class Answer:
    """The model's answer to a prompt before and after an edit.

    Attributes:
        prompt: the prompt.
        kind: ``request``, ``paraphrase``, ``neighbour`` or ``unrelated``.
        before: the generated text of the unedited model.
        after: the generated text of the edited model.
    """

    prompt: str
    kind: str
    before: str
    after: str


@dataclass(frozen=True)
class EditExample:
    """One edit, its instruction, and answers before and after it."""

    request: EditRequest
    instruction: str
    answers: tuple[Answer, ...]


def demo_tasks() -> list[Task]:
    """Return the tasks of the table: those whose YAML names headline metrics."""
    return [task for task in listed_tasks() if task.headline_metrics]


def make_example(
    editor: GradientEditor,
    language_model: LanguageModel,
    request: EditRequest,
    task: Task,
    prompts: Sequence[tuple[str, str]],
) -> EditExample:
    """Make one edit under a task's held-out template and generate answers before and after it.

    Args:
        editor: makes the edit.
        language_model: its base model.
        request: the edit.
        task: its task.
        prompts: (prompt, kind) of the answers besides that to the edit prompt.
    """
    instruction = task.instructions.render_held_out(request)
    deltas = editor.edit(language_model, [request], [instruction])
    prompts = [(request.prompt, "request"), *prompts]
    texts = [prompt for prompt, _ in prompts]
    before = generate(language_model, texts, new_tokens=_NEW_TOKENS)
    after = generate(language_model, texts, edits=deltas, rows=[0] * len(texts), new_tokens=_NEW_TOKENS)
    answers = tuple(
        Answer(prompt, kind, natural_stop(old), natural_stop(new))
        for (prompt, kind), old, new in zip(prompts, before, after, strict=True)
    )
    return EditExample(request, instruction, answers)


def make_examples(
    editor: GradientEditor, language_model: LanguageModel, script: Mapping[str, Any]
) -> tuple[list[EditExample], list[EditExample]]:
    """Return the edits of a demo's script (``demo.yaml``): those of single tasks, and one under two scopes."""

    def example(entry: dict[str, Any], task: str) -> EditExample:
        request = EditRequest(prompt=entry["prompt"], target=entry["target"], subject=entry["subject"])
        prompts = [(text, kind) for kind in _PROMPT_KINDS for text in entry.get(kind, ())]
        return make_example(editor, language_model, request, load_task(task), prompts)

    single = [example(entry, entry["task"]) for entry in script["edits"]]
    return single, [example(script["scope"], task) for task in _SCOPE_TASKS]


def measure_tasks(
    editor: GradientEditor,
    language_model: LanguageModel,
    data: Path | None,
    count: int,
    seed: int,
    swapped: bool = True,
    on_task: Callable[[str], None] = lambda name: None,
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Evaluate an editor on every task of the table.

    Args:
        editor: the editor.
        language_model: its base model.
        data: the data folder, None where there is none.
        count: test edits per task, drawn at random.
        seed: seed of the draws.
        swapped: also measure the scope tasks with the opposite scope's instruction; an editor that reads no
            instruction has no use for it.
        on_task: called with a task's name before every evaluation.

    Returns:
        Headline metrics by task and name, and the file that each task's edits came from.

    Raises:
        DataError: a task's headline metric does not exist; or as :func:`sample_test_edits`.
    """
    tables: dict[str, dict[str, Any]] = {}
    files: dict[str, str] = {}

    def run(task: Task, control: Control) -> Evaluation:
        on_task(task.name)
        records, files[task.name] = sample_test_edits(task, data, count, seed)
        headline = map(get_metric, task.headline_metrics)
        metrics = tuple(dict.fromkeys((*registered_metrics(MetricGroup.CORE), *headline)))
        return evaluate(editor, language_model, task, records, metrics=metrics, instruction=control, seed=seed)

    for task in demo_tasks():
        metrics = run(task, Control.UNSEEN).metrics
        row = {name: metrics[name].as_dict() for name in task.headline_metrics if name in metrics}
        if swapped and task.scope_metric is not None:
            swapped_metrics = run(task, Control.SWAPPED_SCOPE).metrics
            row[f"{task.scope_metric}_swapped"] = swapped_metrics[task.scope_metric].as_dict()
        tables[task.name] = row
    return tables, files
