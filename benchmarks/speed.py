"""Seconds and peak memory per trained, applied and evaluated edit; ours beside EasyEdit's MEND.

    python benchmarks/speed.py --shape gpt2 --easyedit ../EasyEdit --out docs/results/speed-gpt2-cpu.json

Both run on the same random-weight model, the same edited matrices, rank and token counts, each measurement in a
process of its own, so that peaks of memory do not mix. Without ``--easyedit`` the peer's rows are left out. With
``--recipe smollm2`` ours is the editor of that recipe, with its matrices, rank, instruction and contrast, and the peer
is MEND as published:

    python benchmarks/speed.py --shape smollm2-135m --recipe smollm2 --easyedit ../EasyEdit \\
        --out docs/results/speed-smollm2-cpu.json
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from floor import floor
from tqdm import tqdm
from workload import SHAPES, Load, load_model, make_examples

from instructedit.editors.gradient import GradientEditor, GradientEditorConfig, create_editor
from instructedit.editors.mend import MendConfig
from instructedit.evaluation.metrics import MetricGroup, registered_metrics
from instructedit.evaluation.runner import evaluate
from instructedit.models.allocator import keep_freed_memory
from instructedit.models.fusion import fuse_activations_in_place
from instructedit.models.language_model import LanguageModel
from instructedit.records import EditRecord, Probe, ProbeKind
from instructedit.tasks.loading import load_task
from instructedit.training.loop import make_optimizer
from instructedit.training.memory import peak_bytes
from instructedit.training.mixture import Example
from instructedit.training.objective import loss_and_backward
from instructedit.training.recipe import Objective, Optimisation
from instructedit.training.recipe_file import load_stages


@dataclass(frozen=True)
class Job:
    """One measurement: all that a process has to know.

    Attributes:
        what: train, edit, evaluate, or forward (one unedited pass over the edit's own tokens, the unit of cost).
        system: ours or easyedit.
        numbers: exact (float32 throughout) or fast (base model in bfloat16, the hypernetwork's parameters in float32
            and its products in bfloat16; the peer has no such switch and gets the same base and PyTorch's own
            setting for float32 products).
        batch: edits at a time; the peer takes one.
        cache: whether trunk states are remembered (the second and later times are measured).
        recipe: whose editor is ours; MEND's published settings without one.
    """

    what: str
    system: str
    shape: str
    device: str = "cpu"
    numbers: str = "exact"
    threads: int = 0
    batch: int = 1
    blocks: int = 3
    rank: int = 1920
    accumulate: int = 10
    cache: bool = False
    repetitions: int = 5
    load: Load = field(default_factory=Load)
    recipe: str | None = None
    easyedit: str | None = None


def _synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _seconds(work: Callable[[int], Any], job: Job) -> list[float]:
    """Wall times of ``work(repetition)``, after one warm-up."""
    times = []
    for repetition in range(job.repetitions + 1):
        _synchronise(job.device)
        began = time.perf_counter()
        work(repetition)
        _synchronise(job.device)
        times.append(time.perf_counter() - began)
    return times[1:]


def _peak(job: Job) -> int:
    """Bytes: of the device's memory, or of the whole process on a CPU."""
    if job.device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    return peak_bytes()


@contextmanager
def _remembering(job: Job, language_model: LanguageModel, split_layer: int) -> Iterator[None]:
    if not job.cache:
        yield
        return
    with language_model.cache_trunk(split_layer, memory=2_000_000_000):
        yield


def _ours(job: Job, language_model: LanguageModel) -> list[float]:
    config: GradientEditorConfig = MendConfig(blocks=job.blocks, rank=job.rank, last_relu=True, step_size=1e-4)
    if job.recipe:
        config = load_stages(job.recipe)[0].editor
    vocabulary = SHAPES[job.shape].vocabulary
    examples = make_examples(job.batch, job.load, vocabulary)
    requests = [example.request for example in examples]
    if job.what == "forward":
        pair = language_model.text.encode_pair
        ids = torch.tensor([pair(r.prompt, r.target).ids for r in requests], device=language_model.device)
        with torch.no_grad():
            return _seconds(lambda _: language_model.model(input_ids=ids, use_cache=False), job)
    editor = create_editor(config, language_model).to(language_model.device)
    if job.what != "train" and job.numbers == "fast":
        editor.round_in_place(torch.bfloat16)  # as `load_trained_editor` does
    if job.what == "edit":
        instructions = [example.instruction for example in examples]
        return _seconds(lambda _: editor.edit(language_model, requests, instructions), job)
    if job.what == "evaluate":
        records = [_record(example, index) for index, example in enumerate(examples)]
        task = load_task("counterfact")
        core = registered_metrics(MetricGroup.CORE)
        return _seconds(lambda _: evaluate(editor, language_model, task, records, metrics=core), job)
    optimizer = make_optimizer(editor, Optimisation(learning_rate=1e-6, step_size_learning_rate=1e-4))
    editor.train()
    autocast = torch.autocast(language_model.device.type, torch.bfloat16, enabled=job.numbers == "fast")
    with _remembering(job, language_model, editor.split_layer), autocast:
        return _seconds(lambda step: train_step(editor, language_model, examples, optimizer), job)


def train_step(
    editor: GradientEditor, language_model: LanguageModel, examples: list[Example], optimizer: torch.optim.Optimizer
) -> float:
    """What the training loop does in one step; returns the mean loss of the edits."""
    deltas = editor(language_model, [e.request for e in examples], [e.instruction for e in examples])
    losses = loss_and_backward(editor, language_model, deltas, examples, Objective())
    torch.nn.utils.clip_grad_norm_(editor.parameters(), 100.0)
    optimizer.step()
    optimizer.zero_grad()
    return losses.mean_edit


def _record(example: Example, index: int) -> EditRecord:
    probes = tuple(
        Probe(kind=ProbeKind.UNRELATED, prompt=prompt, answers=(answer,)) for prompt, answer in example.locality_targets
    )
    return EditRecord(record_id=str(index), request=example.request, probes=probes)


def _easyedit(job: Job, language_model: LanguageModel) -> list[float]:
    from easyedit_peer import EasyEditMend

    assert job.easyedit is not None
    matrices = [matrix.name for matrix in language_model.structure.last_mlps(job.blocks)]
    peer = EasyEditMend(
        Path(job.easyedit),
        language_model,
        matrices,
        rank=job.rank,
        learning_rate=1e-6,
        accumulate=job.accumulate,
    )
    examples = make_examples(job.accumulate, job.load, SHAPES[job.shape].vocabulary)
    peer.train_edit(examples[0])  # its running statistics need an edit before any other use
    if job.what == "train":  # a whole round, with its share of the optimiser's step
        times = _seconds(lambda _: [peer.train_edit(example) for example in examples], job)
        return [value / job.accumulate for value in times]
    one = peer.apply_edit if job.what == "edit" else peer.evaluate_edit
    return _seconds(lambda repetition: one(examples[repetition % len(examples)]), job)


def _said(job: Job) -> dict[str, Any]:
    """A job as it is reported: without the place of the user's checkout."""
    return {key: value for key, value in asdict(job).items() if key != "easyedit"}


def measure(job: Job) -> dict[str, Any]:
    """Run one measurement in this process."""
    if job.system == "ours":
        keep_freed_memory()  # as our commands do
    if job.threads:
        torch.set_num_threads(job.threads)
    fast = job.numbers == "fast"
    torch.set_float32_matmul_precision("medium" if fast else "highest")
    random.seed(0)
    language_model = load_model(job.shape, torch.bfloat16 if fast else torch.float32, job.device)
    if job.system == "ours":
        fuse_activations_in_place(language_model.model)  # as `load_language_model` does
    gc.collect()
    base = _peak(job)
    times = (_ours if job.system == "ours" else _easyedit)(job, language_model)
    each = [value / job.batch for value in times]
    return {
        **_said(job),
        "threads": torch.get_num_threads(),
        "seconds": {"median": statistics.median(each), "low": min(each), "high": max(each)},
        "peak_bytes": _peak(job),
        "base_bytes": base,
    }


def run_apart(job: Job) -> dict[str, Any]:
    """Run one measurement in a process of its own."""
    command = [sys.executable, __file__, "--job", json.dumps(asdict(job))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {**_said(job), "failed": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "?"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def headline_jobs(base: Job, batches: list[int]) -> list[Job]:
    """Ours at every batch size, with the choices that a user has, and the peer."""
    fast = replace(base, numbers="fast")
    jobs = []
    if base.easyedit:
        peers = (replace(base, system="easyedit"), replace(fast, system="easyedit"))
        jobs += [replace(peer, what=what) for what in ("train", "edit", "evaluate") for peer in peers]
    for batch in batches:
        jobs += [replace(start, batch=batch) for start in (base, fast, replace(fast, cache=True))]
        jobs += [replace(fast, what=what, batch=batch) for what in ("forward", "edit")]
    jobs += [replace(fast, what="evaluate", batch=batch) for batch in (max(batches), 128)]
    return jobs


def sweep_jobs(base: Job, batch: int) -> dict[str, list[Job]]:
    """Cost against batch size, prompt length, edited blocks and number of locality prompts."""
    base = replace(base, numbers="fast", repetitions=3)
    at = replace(base, batch=batch)
    return {
        "batch": [replace(base, batch=size) for size in (1, 2, 4, 8, 16, 32)],
        "prompt tokens": [replace(at, load=replace(at.load, edit=size)) for size in (16, 32, 48, 64, 96, 128)],
        "blocks": [replace(at, blocks=count) for count in (1, 2, 3, 4, 6) if count < 12],
        "edits at a time": [replace(base, what="edit", batch=size) for size in (1, 4, 16, 64)],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| what | system | batch | numbers | cache | ms an edit (low-high) | peak MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "failed" in row:
            cells = f"failed: {row['failed'][:60]} | "
        else:
            low, mid, high = (1000 * row["seconds"][key] for key in ("low", "median", "high"))
            cells = f"{mid:.1f} ({low:.1f}-{high:.1f}) | {row['peak_bytes'] / 1e6:.0f}"
        name = f"{row['what']} | {row['system']} | {row['batch']} | {row['numbers']} | {'yes' if row['cache'] else ''}"
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Run the measurements and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=list(SHAPES), default="gpt2")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; default PyTorch's choice")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16], help="edits at a time")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--rank", type=int, default=1920)
    parser.add_argument("--recipe", help="whose editor is ours; default: MEND with --rank")
    parser.add_argument("--easyedit", type=Path, help="a checkout of EasyEdit, for the peer's rows")
    parser.add_argument("--sweep", action="store_true", help="also cost against batch, length, blocks and edits")
    parser.add_argument("--out", type=Path, help="write the result as JSON here")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        raw = json.loads(options.job)
        print(json.dumps(measure(Job(**{**raw, "load": Load(**raw["load"])}))))
        return
    base = Job(
        "train",
        "ours",
        options.shape,
        device=options.device,
        threads=options.threads,
        rank=options.rank,
        repetitions=options.repetitions,
        recipe=options.recipe,
        easyedit=str(options.easyedit) if options.easyedit else None,
    )
    sweeps = sweep_jobs(base, max(options.batches)) if options.sweep else {}
    jobs = headline_jobs(base, options.batches)
    with tqdm(total=len(jobs) + sum(map(len, sweeps.values())), unit="run") as bar:

        def run(job: Job) -> dict[str, Any]:
            bar.set_postfix_str(f"{job.system} {job.what} x{job.batch}")
            found = run_apart(job)
            bar.update()
            return found

        rows = [run(job) for job in jobs]
        swept = {name: [run(job) for job in part] for name, part in sweeps.items()}
    result = {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "device": torch.cuda.get_device_name() if options.device.startswith("cuda") else "cpu",
        },
        "versions": {name: version(name) for name in ("instructedit", "torch", "transformers")},
        "floor": floor(options.shape, base.blocks, base.rank, base.load, max(options.batches)),
        "rows": rows,
        "sweeps": swept,
    }
    print(table(rows))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
