"""The speed benchmark's sweeps as figures: cost against batch size, prompt length, edited blocks and edits at a time.

    python benchmarks/figures.py docs/results/speed-gpt2-cpu.json --out docs/results

Needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot


def varied(name: str, row: dict[str, Any]) -> int:
    """What a sweep varies, of one of its rows."""
    values = {
        "batch": row["batch"],
        "prompt tokens": row["load"]["edit"],
        "blocks": row["blocks"],
        "edits at a time": row["batch"],
    }
    return int(values[name])


def draw(result: dict[str, Any], path: Path) -> None:
    """One panel a sweep; bars from the fastest to the slowest repetition."""
    sweeps = {name: [row for row in rows if "failed" not in row] for name, rows in result["sweeps"].items()}
    figure, panels = pyplot.subplots(1, len(sweeps), figsize=(3.2 * len(sweeps), 3), layout="constrained")
    for panel, (name, rows) in zip(panels, sweeps.items(), strict=True):
        x = [varied(name, row) for row in rows]
        y, low, high = ([1000 * row["seconds"][key] for row in rows] for key in ("median", "low", "high"))
        spread = [[m - v for m, v in zip(y, low, strict=True)], [v - m for m, v in zip(y, high, strict=True)]]
        panel.errorbar(x, y, yerr=spread, marker="o", capsize=3)
        panel.set_xlabel(name)
        panel.set_ylim(bottom=0)
        panel.set_title(f"{rows[0]['what']}, ms an edit", fontsize=10)
        panel.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Draw the figure of a result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder for the picture")
    options = parser.parse_args()
    path = options.out / f"{options.result.stem}.png"
    draw(json.loads(options.result.read_text(encoding="utf-8")), path)
    print(path)


if __name__ == "__main__":
    main()
