"""What an edit loses on another precision of the base model: an editor of one model, used on quantised copies of it.

    python benchmarks/quantised.py --base smollm2-135m-instruct --editor runs/smollm2/editor.safetensors \\
        --limit 60 --out docs/results/quantised.json

Every matrix of the copies was quantised to a format of llama.cpp and dequantised. The distance is the one that the
warning of a near model states. Differences to the model that the editor was trained for are paired by edit.
"""

from __future__ import annotations

import random
from copy import deepcopy
from typing import Any

import torch
from gguf import GGMLQuantizationType, dequantize, quantize
from result_files import parser_for_an_editor, write_result
from tqdm import tqdm

from instructedit.data.locations import find_data
from instructedit.editors.lookup import load_editor
from instructedit.editors.saving import digest_of
from instructedit.evaluation.intervals import estimate
from instructedit.evaluation.metrics import MetricGroup, registered_metrics
from instructedit.evaluation.runner import Evaluation, evaluate
from instructedit.models.language_model import LanguageModel, load_language_model
from instructedit.tasks.edits import read_edits
from instructedit.tasks.loading import load_task

FORMATS = ("Q8_0", "Q5_0", "Q4_0")
METRICS = ("reliability", "generalization", "locality")


@torch.no_grad()
def quantised(language_model: LanguageModel, name: str) -> LanguageModel:
    """Return a copy whose matrices went through a format of llama.cpp; its blocks are of 32 weights in a row."""
    kind = GGMLQuantizationType[name]
    model = deepcopy(language_model.model)
    for parameter in model.parameters():
        if parameter.ndim == 2 and parameter.shape[1] % 32 == 0:
            values = dequantize(quantize(parameter.float().numpy(), kind), kind)
            parameter.copy_(torch.from_numpy(values).view(parameter.shape))
    return LanguageModel(model, language_model.tokenizer, f"{language_model.source} in {name}")


def main() -> None:
    """Evaluate on the model and its copies, and write the JSON."""
    parser = parser_for_an_editor(__doc__.splitlines()[0])
    parser.add_argument("--task", default="counterfact")
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=[t.name for t in GGMLQuantizationType])
    parser.add_argument("--limit", type=int, default=60, help="test edits, drawn at random with seed 0")
    options = parser.parse_args()
    trained_on = load_language_model(options.base, dtype=options.dtype)
    task = load_task(options.task)
    file = task.files.test or ""
    records = read_edits(task, file, find_data(), skip_incomplete=True)
    records = random.Random(0).sample(records, min(options.limit, len(records)))

    def measured(language_model: LanguageModel) -> Evaluation:
        editor = load_editor(options.editor, language_model)
        return evaluate(editor, language_model, task, records, metrics=registered_metrics(MetricGroup.CORE))

    own = measured(trained_on)
    rows: list[dict[str, Any]] = [_row("as trained", 0.0, own, own)]
    for name in tqdm(options.formats, unit="format"):
        copy = quantised(trained_on, name)
        distance = copy.distance_to(trained_on.architecture, trained_on.sketch)
        rows.append(_row(name, distance, measured(copy), own))
        print(rows[-1], flush=True)
    digest = digest_of(options.editor)
    write_result(options.out, trained_on, rows, editor=options.editor, editor_digest=digest, file=file, seed=0)


def _row(name: str, distance: float | None, found: Evaluation, own: Evaluation) -> dict[str, Any]:
    differences = {
        metric: [row[metric] - own.records[edit][metric] for edit, row in found.records.items() if metric in row]
        for metric in METRICS
    }
    return {
        "format": name,
        "distance": distance,
        "metrics": {metric: found.metrics[metric].as_dict() for metric in METRICS},
        "differences": {metric: estimate(values).as_dict() for metric, values in differences.items()},
    }


if __name__ == "__main__":
    main()
