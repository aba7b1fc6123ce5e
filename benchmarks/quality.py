"""The figures of the README: an editor on the real test files, under its own and under wrong instructions.

    python benchmarks/quality.py --out docs/results/bundled.json

Needs the public data sets (INSTRUCTEDIT_DATA). Every row is one call of ``evaluate``; the JSON holds them whole.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from instructedit.data import find_data
from instructedit.editors.files import load_editor
from instructedit.evaluation.demonstration import TEST_FILES
from instructedit.evaluation.protocols import Control, Protocol
from instructedit.evaluation.runner import evaluate
from instructedit.models.language_model import load_language_model
from instructedit.tasks.readers import read_records
from instructedit.tasks.task import load_task

WIKI = "wiki_counterfact/test_cf.json"
#: task, file, protocol, instruction, wording
RUNS: tuple[tuple[str, str, Protocol, Control, str | None], ...] = (
    *((task, file, Protocol.PLAIN, Control.UNSEEN, None) for task, file in TEST_FILES.items()),
    ("counterfact", WIKI, Protocol.PLAIN, Control.UNSEEN, None),
    ("this-fact", TEST_FILES["this-fact"], Protocol.PLAIN, Control.SWAPPED_SCOPE, None),
    ("rename", TEST_FILES["rename"], Protocol.PLAIN, Control.SWAPPED_SCOPE, None),
    ("this-fact", TEST_FILES["this-fact"], Protocol.PLAIN, Control.UNSEEN, "test"),
    ("rename", TEST_FILES["rename"], Protocol.PLAIN, Control.UNSEEN, "test"),
    ("this-fact", TEST_FILES["this-fact"], Protocol.PLAIN, Control.SWAPPED_SCOPE, "test"),
    ("rename", TEST_FILES["rename"], Protocol.PLAIN, Control.SWAPPED_SCOPE, "test"),
    *(
        (task, TEST_FILES[task], Protocol.GENERATION, Control.UNSEEN, None)
        for task in ("counterfact", "recent", "zsre")
    ),
    *((task, TEST_FILES[task], Protocol.PLAIN, Control.NONE, None) for task in ("counterfact", "zsre")),
)


def main() -> None:
    """Run all rows and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="write the result as JSON here")
    parser.add_argument("--editor", default="bundled")
    parser.add_argument("--limit", type=int, default=200, help="test edits a row, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model = load_language_model("bundled")
    editor = load_editor(options.editor, model)
    rows: list[dict[str, Any]] = []
    began = time.monotonic()
    for name, file, protocol, control, wording in RUNS:
        records = read_records(find_data() / file)
        records = random.Random(options.seed).sample(records, min(options.limit, len(records)))
        found = evaluate(
            editor,
            model,
            load_task(name),
            records,
            protocol=protocol,
            instruction=control,
            wording=wording,
            seed=options.seed,
        )
        rows.append({"file": file, **found.as_dict()})
        shown = {key: round(100 * value.mean, 1) for key, value in found.metrics.items() if "/" not in key}
        print(name, Path(file).name, protocol, found.instruction, shown, flush=True)
    result = {
        "base": model.fingerprint,
        "editor": options.editor,
        "seed": options.seed,
        "limit": options.limit,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "versions": {package: version(package) for package in ("instructedit", "torch", "transformers")},
        "rows": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
