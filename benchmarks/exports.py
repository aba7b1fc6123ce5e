"""Exported edits in other programs: the logits of PEFT and transformers, the answers of llama.cpp.

    python benchmarks/exports.py --gguf SmolLM2-135M-Instruct.Q4_1.gguf --out docs/results/exports.json

Edits of CounterFact's test file are made one at a time by the shipped editor, exported in every format, and read in
processes that do not import InstructEdit (benchmarks/export_readers.py). An edit is tried with its own prompt, its
paraphrases, its neighbours, and prompts that it is not about, 100 prompts in all. Logits are compared in float32;
answers are greedy, and compared with ours on the edited float32 model, and with ours on the weights that llama.cpp
has: the same GGUF file, read by transformers and computed in float32. The same is done without an edit: what differs
there is due to how llama.cpp computes, not to the export.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from export_readers import NEW_TOKENS
from result_files import write_result
from safetensors.torch import load_file
from tqdm import tqdm

from instructedit.artifacts import editor_for
from instructedit.data.locations import find_data
from instructedit.deltas.delta import Delta
from instructedit.editors.editing import make_edits
from instructedit.editors.lookup import load_editor
from instructedit.editors.saving import digest_of
from instructedit.evaluation.edit_report import unrelated_prompts
from instructedit.evaluation.generation import generate, matches
from instructedit.export.gguf_files import export_gguf_adapter, merge_into_gguf
from instructedit.export.merged import export_merged
from instructedit.export.peft_folder import export_peft
from instructedit.models.catalogue import known_models
from instructedit.models.language_model import LanguageModel, load_language_model
from instructedit.models.text import pad
from instructedit.records import EditRecord, ProbeKind
from instructedit.tasks.edits import read_edits
from instructedit.tasks.loading import load_task

FILE = "counterfact/counterfact-val.json"
READER = Path(__file__).with_name("export_readers.py")
#: Those that are not the edit's own are unrelated.
PROMPTS_PER_EDIT = 10
#: Types of the edited and of the other matrices in GGUF.
PRECISIONS = ("F32", "Q8_0", "Q4_0")
#: Measures: of logits the largest counts, of answers how many are ours, of edits how many give their target.
DIFFERENCE, SAME, SAME_WEIGHTS = "largest difference of logits", "same answers", "same answers on these weights"
HOLDS = "edits that hold"


def prompts_of(record: EditRecord) -> list[str]:
    """Return the prompts with which an edit is tried."""
    neighbours = [probe.prompt for probe in record.of_kind(ProbeKind.NEIGHBOUR)]
    own = [record.request.prompt, *record.rephrases, *neighbours]
    return [*own, *unrelated_prompts()][:PROMPTS_PER_EDIT]


@torch.no_grad()
def our_logits(language_model: LanguageModel, delta: Delta, prompts: list[str]) -> torch.Tensor:
    """Return the logits of the next token after each prompt, one prompt at a time."""
    rows = []
    with delta.attached(language_model):
        for prompt in prompts:
            batch = pad([language_model.text.encode_pair(prompt, ".")], language_model.text.pad_id)
            rows.append(language_model.split(0).full(batch)[0].float())
    return torch.stack(rows)


def read(kind: str, base: object, exported: object, prompts: Path, out: Path) -> None:
    """Run a reader in a process of its own."""
    subprocess.run([sys.executable, READER, kind, base, exported, prompts, out], check=True, stderr=subprocess.DEVNULL)


def try_edit(
    language_model: LanguageModel, folder: Path, delta: Delta, prompts: list[str], sources: dict[str, Path], work: Path
) -> dict[str, dict[str, list[float]]]:
    """Return for each format the measures of every prompt; the first prompt is the edit's own."""
    listed = work / "prompts.json"
    listed.write_text(json.dumps(prompts), encoding="utf-8")
    export_peft(delta, language_model, work / "peft", base_name=str(folder))
    export_merged(delta, language_model, work / "merged", base_name=str(folder))
    export_gguf_adapter(delta, language_model, work / "adapter.gguf")
    logits = our_logits(language_model, delta, prompts)
    results: dict[str, dict[str, list[float]]] = {}
    for name, kind, exported in (("PEFT", "peft", "peft"), ("merged checkpoint", "transformers", "merged")):
        read(kind, folder, work / exported, listed, work / "out.safetensors")
        theirs = load_file(work / "out.safetensors")["logits"]
        results[name] = {DIFFERENCE: (theirs - logits).abs().amax(-1).tolist()}

    def ours(model: LanguageModel, change: Delta | None) -> list[str]:
        return [text.strip() for text in generate(model, prompts, delta=change, new_tokens=NEW_TOKENS)]

    def compare(name: str, base: Path, adapter: object, change: Delta | None, exact: list[str]) -> None:
        read("llama.cpp", base, adapter, listed, work / "out.json")
        theirs = [text.strip() for text in json.loads((work / "out.json").read_text(encoding="utf-8"))]
        same_weights = ours(load_language_model(base, dtype="float32"), change)
        results[name] = {
            measure: [float(one == other) for one, other in zip(own, theirs, strict=True)]
            for measure, own in ((SAME, exact), (SAME_WEIGHTS, same_weights))
        }
        if exact is edited:
            results[name][HOLDS] = [float(matches(theirs[0], [delta.metadata.requests[0].target]))]

    unedited, edited = ours(language_model, None), ours(language_model, delta)
    for precision, source in sources.items():
        compare(f"no edit, {precision}", source, "-", None, unedited)
        compare(f"GGUF adapter on {precision}", source, work / "adapter.gguf", delta, edited)
        merge_into_gguf(delta, language_model, source, work / "merged.gguf", kind=precision, others=precision)
        compare(f"merged GGUF, {precision}", work / "merged.gguf", "-", None, edited)
    return results


def main() -> None:
    """Measure every format and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", type=Path, required=True, help="the base model as GGUF")
    parser.add_argument("--out", type=Path, required=True, help="write the result as JSON here")
    parser.add_argument("--base", default="smollm2-135m-instruct")
    parser.add_argument("--edits", type=int, default=10)
    options = parser.parse_args()
    language_model = load_language_model(options.base, dtype="float32")
    name = editor_for(options.base)
    editor = load_editor(name, language_model)
    task = load_task("counterfact")
    records = random.Random(0).sample(read_edits(task, FILE, find_data(), skip_incomplete=True), options.edits)
    results: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        nothing = make_edits(editor, language_model, [records[0].request], task)[0].scale(0.0)
        sources = {precision: root / f"base-{precision}.gguf" for precision in PRECISIONS}
        for precision, path in sources.items():
            merge_into_gguf(nothing, language_model, options.gguf, path, kind=precision, others=precision)
        for number, record in enumerate(tqdm(records)):
            work = root / str(number)
            work.mkdir()
            [delta] = make_edits(editor, language_model, [record.request], task)
            folder = known_models()[options.base].folder
            for format_, values in try_edit(language_model, folder, delta, prompts_of(record), sources, work).items():
                for measure, each in values.items():
                    results.setdefault(format_, {}).setdefault(measure, []).extend(each)
    rows = [summary(format_, values) for format_, values in results.items()]
    for row in rows:
        print(row)
    write_result(options.out, language_model, rows, editor=name, editor_digest=digest_of(name), file=FILE, seed=0,
                 edits=options.edits, new_tokens=NEW_TOKENS)  # fmt: skip


def summary(format_: str, measures: dict[str, list[float]]) -> dict[str, Any]:
    """Return the row of a format."""
    prompts = len(measures.get(SAME) or measures[DIFFERENCE])
    totals = {name: round(max(each) if name == DIFFERENCE else sum(each), 7) for name, each in measures.items()}
    return {"format": format_, "prompts": prompts, **totals}


if __name__ == "__main__":
    main()
