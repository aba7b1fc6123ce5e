"""Loss against trained edits: ours and EasyEdit's MEND from the same start on the same edits.

    python benchmarks/curves.py --easyedit ../EasyEdit --edits 320 --out docs/results/curves-gpt2-cpu.json

The random-weight model cannot be taught anything that lasts, but an editor can learn to edit it: the loss of an
edit after the edit falls as both train. Both see every edit once, in the same order; the loss of each is taken
before it is learned from, so the curves are of edits that were never seen.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from easyedit_peer import EasyEditMend
from speed import train_step
from workload import SHAPES, Load, load_model, make_examples

from instructedit.editors.gradient import create_editor
from instructedit.editors.mend import MendConfig
from instructedit.training.loop import make_optimizer
from instructedit.training.recipe import Optimisation


def ours(options: argparse.Namespace, learning_rate: float) -> dict[str, Any]:
    """Our trainer; the loss of every batch before its step."""
    torch.set_float32_matmul_precision("medium")
    model = load_model(options.shape, torch.bfloat16, "cpu")
    examples = make_examples(options.edits, Load(), SHAPES[options.shape].vocabulary)
    torch.manual_seed(0)
    config = MendConfig(blocks=3, rank=options.rank, last_relu=True, step_size=options.step_size)
    editor = create_editor(config, model).train()
    rates = Optimisation(learning_rate=learning_rate, step_size_learning_rate=options.step_size_learning_rate)
    optimizer = make_optimizer(editor, rates)
    losses, began = [], time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16):
        for start in range(0, options.edits, options.batch):
            losses.append(train_step(editor, model, examples[start : start + options.batch], optimizer))
            print("ours", learning_rate, start, round(losses[-1], 3), flush=True)
    return {"learning_rate": learning_rate, "loss": losses, "seconds": time.perf_counter() - began}


def easyedit(options: argparse.Namespace, learning_rate: float, sign: int) -> dict[str, Any]:
    """The peer's trainer; the mean loss of as many edits as one of our batches has.

    The peer ADDS its step size times the gradient, so with its own (positive) start the first edits raise the loss
    until the network has turned round; ``sign`` -1 starts it downhill, as ours starts.
    """
    torch.set_float32_matmul_precision("highest")
    model = load_model(options.shape, torch.float32, "cpu")
    examples = make_examples(options.edits, Load(), SHAPES[options.shape].vocabulary)
    peer = EasyEditMend(
        options.easyedit,
        model,
        [matrix.name for matrix in model.structure.last_mlps(3)],
        rank=options.rank,
        learning_rate=learning_rate,
        step_size=sign * options.step_size,
        step_size_learning_rate=options.step_size_learning_rate * options.step_size,
        accumulate=options.batch,
    )
    losses, began = [], time.perf_counter()
    for start in range(0, options.edits, options.batch):
        part = [peer.train_edit(example)["loss/edit"] for example in examples[start : start + options.batch]]
        losses.append(sum(part) / len(part))
        print("easyedit", learning_rate, sign, start, round(losses[-1], 3), flush=True)
    return {"learning_rate": learning_rate, "sign": sign, "loss": losses, "seconds": time.perf_counter() - began}


def main() -> None:
    """Train both at several learning rates; each is judged by its best."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--easyedit", type=Path, required=True, help="a checkout of EasyEdit")
    parser.add_argument("--shape", choices=list(SHAPES), default="gpt2")
    parser.add_argument("--rank", type=int, default=1920)
    parser.add_argument("--edits", type=int, default=320)
    parser.add_argument("--batch", type=int, default=16, help="edits an optimiser step, of both")
    parser.add_argument("--step-size", type=float, default=1e-4, help="alpha at the start, of both")
    parser.add_argument("--step-size-learning-rate", type=float, default=5e-2, help="of log(alpha)")
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[1e-5, 1e-4])
    parser.add_argument("--peer-learning-rates", type=float, nargs="+", default=[1e-6, 1e-5])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    result = {
        "shape": options.shape,
        "edits": options.edits,
        "batch": options.batch,
        "ours": [ours(options, rate) for rate in options.learning_rates],
        "easyedit": [easyedit(options, rate, sign) for sign in (1, -1) for rate in options.peer_learning_rates],
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name in ("ours", "easyedit"):
        for run in result[name]:
            losses = f"{run['loss'][0]:.3f} -> {run['loss'][-1]:.3f}"
            print(name, run["learning_rate"], run.get("sign", ""), losses, f"in {run['seconds']:.0f} s")


if __name__ == "__main__":
    main()
