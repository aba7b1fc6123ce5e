"""Figures of the benchmarks; of speed: cost against batch size, prompt length, edited blocks and edits at a time.

    python benchmarks/figures.py docs/results/speed-gpt2-cpu.json --out docs/results
    python benchmarks/figures.py docs/results/curves-gpt2-cpu.json --out docs/results     (loss against edits)
    python benchmarks/figures.py docs/results/matched.json --out docs/results             (what is reached against kept)
    python benchmarks/figures.py docs/results/many-edits.json --out docs/results          (scores against edits at once)

Needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib
from experiment_tables import method_of

matplotlib.use("Agg")

from matplotlib import pyplot

from instructedit.storage.pictures import save_figure


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
    save_figure(figure, path, dpi=120)


def draw_curves(result: dict[str, Any], path: Path) -> None:
    """Loss against trained edits, of every run of benchmarks/curves.py."""
    figure, panel = pyplot.subplots(figsize=(5, 3.4), layout="constrained")
    for name in ("ours", "easyedit"):
        for run in result[name]:
            as_published = " as published" if run.get("sign") == 1 else ""
            x = [index * result["batch"] for index in range(len(run["loss"]))]
            panel.plot(x, run["loss"], marker="o", label=f"{name}{as_published}, rate {run['learning_rate']:g}")
    panel.set_yscale("log")
    panel.set_xlabel("edits trained on")
    panel.set_ylabel("loss of unseen edits")
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
    save_figure(figure, path, dpi=120)


def draw_matched(result: dict[str, Any], path: Path) -> None:
    """Generalization against Locality as edits grow, a panel a task; the trained size is the large point."""
    tasks = result["tasks"]
    figure, panels = pyplot.subplots(1, len(tasks), figsize=(3 * len(tasks), 3), layout="constrained", sharey=True)
    for panel, (task, found) in zip(panels, tasks.items(), strict=True):
        for name, curve in zip(("of", "minus"), found["curves"], strict=True):
            x, y = ([100 * scores[metric] for scores in curve.values()] for metric in ("locality", "generalization"))
            sizes = [60 if float(factor) == 1.0 else 14 for factor in curve]
            (line,) = panel.plot(x, y, alpha=0.6, label=" ".join(result[name]))
            panel.scatter(x, y, s=sizes, color=line.get_color())
        panel.set_title(task, fontsize=10)
        panel.set_xlabel("Locality, %")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("Generalization, %")
    panels[0].legend(fontsize=8, loc="lower left")
    save_figure(figure, path, dpi=120)


def draw_many_edits(result: dict[str, Any], path: Path) -> None:
    """Scores against the number of edits in one model: a panel a score, a colour a method, broken lines for sequences.

    Changes of a limited rank are left to the table.
    """
    metrics = ("reliability", "generalization", "locality")
    figure, panels = pyplot.subplots(1, 3, figsize=(10, 3.6), layout="constrained", sharey=True)
    lines: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in result["rows"]:
        if row.get("rank") is None:
            lines.setdefault((method_of(row).replace("`", ""), row["order"]), []).append(row)
    colours = {method: f"C{number}" for number, method in enumerate(dict.fromkeys(method for method, _ in lines))}
    assert len(colours) <= 10, "more methods than colours"
    for panel, metric in zip(panels, metrics, strict=True):
        for (method, order), rows in lines.items():
            rows = sorted(rows, key=lambda row: row["edits"])
            y = [100 * row["metrics"][metric]["mean"] for row in rows]
            style, name = ("--", f"{method}, sequence") if order == "sequence" else ("-", method)
            panel.plot([row["edits"] for row in rows], y, style, marker="o", color=colours[method], label=name, ms=3)
        panel.set_xscale("log")
        panel.set_title(metric.capitalize(), fontsize=10)
        panel.set_xlabel("edits in one model")
        panel.set_ylim(-3, 103)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("%")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7)
    save_figure(figure, path, dpi=100)


def main() -> None:
    """Draw the figure of a result of speed.py, curves.py, matched.py or many_edits.py."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder for the picture")
    options = parser.parse_args()
    path = options.out / f"{options.result.stem}.png"
    result = json.loads(options.result.read_text(encoding="utf-8"))
    kinds = {"sweeps": draw, "tasks": draw_matched, "rows": draw_many_edits, "ours": draw_curves}
    next(kind for key, kind in kinds.items() if key in result)(result, path)
    print(path)


if __name__ == "__main__":
    main()
