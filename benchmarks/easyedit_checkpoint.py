"""A MEND checkpoint that EasyEdit itself wrote, converted: how far our update is from its own.

    python benchmarks/easyedit_checkpoint.py --easyedit ../EasyEdit --out docs/results/easyedit-checkpoint.json

EasyEdit trains its MEND for some edits on a random-weight model, and saves its state as its trainer does. The
converted editor and EasyEdit's own then make the same new edits; reported is the largest difference of the changed
weights, relative to the largest change.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
import yaml
from easyedit_peer import EasyEditMend
from torch import nn
from workload import SHAPES, Load, load_model, make_examples

from instructedit.editors.easyedit import convert_easyedit


def main() -> None:
    """Train, convert, compare, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--easyedit", type=Path, required=True, help="a checkout of EasyEdit")
    parser.add_argument("--out", type=Path, required=True, help="write the result as JSON here")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["tiny", "gpt2", "smollm2-135m"])
    parser.add_argument("--train", type=int, default=20, help="edits that EasyEdit trains on")
    parser.add_argument("--edits", type=int, default=5, help="edits that are compared")
    parser.add_argument("--rank", type=int, default=64)
    options = parser.parse_args()
    rows = []
    for shape in options.shapes:
        model = load_model(shape, torch.float32, "cpu")
        examples = make_examples(options.train + options.edits, Load(), SHAPES[shape].vocabulary)
        names = [matrix.name for matrix in model.structure.last_mlps(3)]
        peer = EasyEditMend(
            options.easyedit, model, names, rank=options.rank, learning_rate=1e-3, step_size_learning_rate=1e-3,
            accumulate=1,
        )  # fmt: skip
        for example in examples[: options.train]:
            peer.train_edit(example)
        peer.mend.eval()
        with tempfile.TemporaryDirectory() as folder:
            checkpoint, config = Path(folder) / "mend.pt", Path(folder) / "mend.yaml"
            torch.save({"model": peer.mend.state_dict()}, checkpoint)
            config.write_text(yaml.safe_dump(vars(peer.config)))
            editor = convert_easyedit(checkpoint, config, model)
        worst = 0.0
        for example in examples[options.train :]:
            theirs, _ = peer.mend.edit(peer._batch(example)["edit_inner"])
            ours = editor.edit(model, [example.request], [None])
            for name in names:
                before, after = (m.get_submodule(name).weight.detach() for m in (model.model, theirs.model))
                linear = isinstance(model.model.get_submodule(name), nn.Linear)  # else its weight is transposed
                change = (after - before).T if linear else after - before
                found = ours.factors[name].dense()[0]
                worst = max(worst, ((found - change).abs().max() / change.abs().max()).item())
        rates = peer.mend.edit_lrs.tolist()
        rows.append(
            {"shape": shape, "matrices": len(names), "trained_edits": options.train, "compared_edits": options.edits,
             "largest_relative_difference": worst, "descending": sum(rate < 0 for rate in rates)}
        )  # fmt: skip
        print(rows[-1], flush=True)
    options.out.write_text(json.dumps({"rows": rows, "seed": 0}, indent=2) + "\n")


if __name__ == "__main__":
    main()
