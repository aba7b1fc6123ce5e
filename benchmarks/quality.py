"""The figures of the README: an editor on the real test files, plain and by free generation.

What the instruction decides is measured apart, by ``instructedit reproduce scope``.

    python benchmarks/quality.py --limit 120 --out docs/results/bundled.json
    python benchmarks/quality.py --validation bundled-core --editor build/A/editor.safetensors --out a.json

Needs the public data sets (INSTRUCTEDIT_DATA). Every row is one call of ``evaluate``; the JSON holds them whole.
With ``--validation`` the edits are those that the recipe holds out of its training files: what editors are chosen
by, so that the test files are read once.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from instructedit.data.locations import find_data
from instructedit.editors.lookup import find_editor
from instructedit.editors.saving import digest_of
from instructedit.evaluation.demonstration import demo_tasks
from instructedit.evaluation.protocols import Control, Protocol
from instructedit.evaluation.provenance import provenance
from instructedit.evaluation.runner import evaluate
from instructedit.models.language_model import LanguageModel, load_language_model
from instructedit.records import EditRecord
from instructedit.storage.writing import write_atomically
from instructedit.tasks.edits import read_edits
from instructedit.tasks.loading import load_task
from instructedit.training.data import read_sources
from instructedit.training.recipe_file import load_stages

TEST_FILES = {task.name: task.files.test or "" for task in demo_tasks()}
WIKI = "wiki_counterfact/test_cf.json"
#: task, file, protocol, instruction, templates
RUNS: tuple[tuple[str, str, Protocol, Control, str | None], ...] = (
    *((task, file, Protocol.PLAIN, Control.UNSEEN, None) for task, file in TEST_FILES.items()),
    ("counterfact", WIKI, Protocol.PLAIN, Control.UNSEEN, None),
    *(
        (task, TEST_FILES[task], Protocol.GENERATION, Control.UNSEEN, None)
        for task in ("counterfact", "recent", "zsre")
    ),
)
#: The rows that choose an editor: no held-out task, and the templates kept for validation.
VALIDATION_RUNS: tuple[tuple[str, str, Protocol, Control, str | None], ...] = (
    *((task, "", Protocol.PLAIN, Control.UNSEEN, None) for task in TEST_FILES if task != "zsre"),
    *((task, "", Protocol.PLAIN, Control.SWAPPED_SCOPE, None) for task in ("this-fact", "rename")),
    *((task, "", Protocol.PLAIN, Control.UNSEEN, "validation") for task in ("this-fact", "rename")),
    *((task, "", Protocol.GENERATION, Control.UNSEEN, None) for task in ("counterfact", "recent")),
)


def _held_out(recipe: str) -> dict[str, Sequence[EditRecord]]:
    """The records that a recipe validates on, by task."""
    _, validation = read_sources(load_stages(recipe)[-1], find_data())
    return {source.task.name: source.pool.records for source in validation}


def write_result(path: Path, model: LanguageModel, rows: Sequence[dict[str, Any]], **about: Any) -> None:
    """Rows as JSON, with the model and the versions that they were measured with, and what else is to be said."""
    versions = {package: version(package) for package in ("instructedit", "torch", "transformers")}
    result = {"base": model.fingerprint, **about, "versions": versions, "rows": rows}
    write_atomically(path, (json.dumps(result, indent=2) + "\n").encode())


def main() -> None:
    """Run all rows and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="write the result as JSON here")
    parser.add_argument("--base", default="bundled")
    parser.add_argument("--editor", default="bundled")
    parser.add_argument("--limit", type=int, default=200, help="test edits a row, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--validation", metavar="RECIPE", help="use the recipe's held-out edits, not the test files")
    options = parser.parse_args()
    model = load_language_model(options.base)
    editor = find_editor(options.editor, model)
    rows: list[dict[str, Any]] = []
    began = time.monotonic()
    held_out = _held_out(options.validation) if options.validation else None
    for name, file, protocol, control, templates in VALIDATION_RUNS if held_out else RUNS:
        task = load_task(name)
        records = held_out[name] if held_out else read_edits(task, file, find_data())
        records = random.Random(options.seed).sample(records, min(options.limit, len(records)))
        found = evaluate(
            editor,
            model,
            task,
            records,
            protocol=protocol,
            instruction=control,
            templates=templates,
            seed=options.seed,
        )
        about = {} if held_out else provenance(options.editor, editor, model, file, find_data())
        rows.append({"file": file or f"held out of {options.validation}", **about, **found.as_dict()})
        shown = {key: round(100 * value.mean, 1) for key, value in found.metrics.items() if "/" not in key}
        print(name, Path(file).name or "held out", protocol, found.instruction, shown, flush=True)
    write_result(
        options.out,
        model,
        rows,
        editor=options.editor,
        editor_digest=digest_of(options.editor),
        seed=options.seed,
        limit=options.limit,
        validation=options.validation,
        minutes=round((time.monotonic() - began) / 60, 1),
    )


if __name__ == "__main__":
    main()
