"""What an edited model says where it does not follow its instruction: the reason behind a missed scope.

    python benchmarks/misses.py --out docs/results/misses.json

Every prompt whose answer the scope wants changed is continued freely; what is not the wanted answer is the edit's own
new answer, what the unedited model says, or something else.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from pathlib import Path
from typing import Any

from result_files import write_result

from instructedit.data.locations import find_data
from instructedit.editors.base import Editor
from instructedit.editors.lookup import load_editor
from instructedit.evaluation.generation import generate, matches, normalised
from instructedit.evaluation.protocols import Control, InstructionChooser
from instructedit.evaluation.queries import MAX_PROBES_PER_KIND
from instructedit.models.language_model import LanguageModel, load_language_model
from instructedit.records import EditRecord, ProbeKind
from instructedit.tasks.edits import read_edits
from instructedit.tasks.loading import load_task
from instructedit.tasks.task import Task

COUNTERFACT, SCOPES = "counterfact/counterfact-val.json", "bundled/scope-test.jsonl"
#: task, file, templates
ROWS = (
    ("rename", COUNTERFACT, None),
    ("rename", COUNTERFACT, "test"),
    ("forget", COUNTERFACT, None),
    ("forget", COUNTERFACT, "test"),
    ("consequences", SCOPES, None),
    ("consequences", SCOPES, "test"),
    ("rename-and-on", SCOPES, "test"),
)


def questions(task: Task, record: EditRecord) -> list[tuple[str, str, tuple[str, ...]]]:
    """(kind, prompt, answers) of what the scope wants changed; nobody asks for an answer of what is to be forgotten."""
    request = record.request
    if task.forgets:
        return [("edit", request.prompt, ()), *(("paraphrase", prompt, ()) for prompt in record.rephrases)]
    return [
        (str(kind), probe.prompt, (request.target,) if kind is ProbeKind.NEIGHBOUR else probe.answers)
        for kind in ProbeKind
        if kind in task.in_scope
        for probe in record.of_kind(kind)[:MAX_PROBES_PER_KIND]
    ]


def said(text: str, before: str, record: EditRecord, answers: tuple[str, ...]) -> str:
    """What an answer is: ``wanted``, ``new answer`` of the edit, ``as before`` the edit, or ``other``."""
    if matches(text, answers):
        return "wanted"
    text, request = normalised(text), record.request
    if text.startswith(normalised(request.target)):
        return "new answer"
    if answers:
        return "as before" if text == normalised(before) else "other"
    return "as before" if text.startswith(normalised(request.ground_truth or before)) else "wanted"


def take_apart(
    editor: Editor, model: LanguageModel, task: Task, records: list[EditRecord], templates: str | None
) -> dict[str, dict[str, int]]:
    """How often each kind of question is answered how."""
    chooser = InstructionChooser(task, Control.UNSEEN, templates)
    edits = editor.edit(model, [r.request for r in records], [chooser(r.request) for r in records])
    asked = [(row, *question) for row, record in enumerate(records) for question in questions(task, record)]
    prompts = [prompt for _, _, prompt, _ in asked]
    after = generate(model, prompts, edits=edits, rows=[row for row, *_ in asked], new_tokens=24)
    before = generate(model, prompts, new_tokens=24)
    found: dict[str, Counter[str]] = {}
    for (row, kind, _, answers), text, old in zip(asked, after, before, strict=True):
        found.setdefault(kind, Counter())[said(text, old, records[row], answers)] += 1
    return {kind: dict(counts.most_common()) for kind, counts in found.items()}


def main() -> None:
    """Take all rows apart and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="write the result as JSON here")
    parser.add_argument("--base", default="bundled")
    parser.add_argument("--editor", default="bundled")
    parser.add_argument("--limit", type=int, default=80, help="edits a row, the same as those of `reproduce scope`")
    options = parser.parse_args()
    model = load_language_model(options.base)
    editor = load_editor(options.editor, model)
    rows: list[dict[str, Any]] = []
    for name, file, templates in ROWS:
        task = load_task(name)
        records = read_edits(task, file, find_data(), skip_incomplete=True)
        records = random.Random(0).sample(records, min(options.limit, len(records)))
        answers = take_apart(editor, model, task, records, templates)
        rows.append({"task": name, "file": file, "templates": templates, "edits": len(records), "said": answers})
        print(name, templates or "", answers, flush=True)
    write_result(options.out, model, rows, editor=options.editor, seed=0)


if __name__ == "__main__":
    main()
