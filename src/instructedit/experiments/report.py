"""From the kept scores to what is read: estimates over edits and seeds, paired differences, a page and a picture."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from instructedit.evaluation.intervals import estimate
from instructedit.experiments.cells import cell_file, kept_cell, settings
from instructedit.experiments.plan import Entry, EvaluationSpec, Experiment

#: One editor on one test: a cell a seed.
Cells = Sequence[Mapping[str, Any]]
#: Metrics that are not shares: shown as they are, not in percent.
ABSOLUTE = {"fluency"}


def summarise(experiment: Experiment, out: Path) -> dict[str, Any]:
    """All that was measured, for JSON; what has not been run yet is left out.

    A metric's mean and 95% interval are over edits, each averaged over the seeds first; ``by_seed`` are the seeds' own
    means. A difference is taken edit by edit, between editors that are trained on the seeds that both have.
    """
    cells = {
        (test.label, label): _cells(experiment, entry, label, test, out)
        for test in experiment.tests
        for label, entry in experiment.editors.items()
    }
    rows = [
        _row(test, label, cells[test.label, label])
        for test in experiment.tests
        for label in experiment.editors
        if cells[test.label, label]
    ]
    differences = [
        {"test": test.label, "of": first, "minus": second, "metric": metric, **found}
        for first, second in experiment.compare
        for test in experiment.tests
        for metric in test.metrics
        if (found := _difference(*_of_same_seeds(cells[test.label, first], cells[test.label, second]), metric))
    ]
    return {
        "title": experiment.title,
        "seeds": list(experiment.seeds),
        "edits": experiment.edits,
        "interval": "95%, bootstrap over edits",
        "machine": {"processor": platform.processor() or platform.machine(), "system": platform.system()},
        "versions": {name: version(name) for name in ("instructedit", "torch", "transformers")},
        "rows": rows,
        "differences": differences,
    }


def _cells(experiment: Experiment, entry: Entry, label: str, test: EvaluationSpec, out: Path) -> list[dict[str, Any]]:
    found = []
    for seed in experiment.seeds:
        file = cell_file(out, label, seed, test)
        cell = kept_cell(file, settings(experiment, entry, seed, test))
        if cell is not None:
            found.append(cell)
    return found


def _by_edit(cells: Cells, metric: str) -> dict[str, float]:
    """Every edit's value, averaged over the seeds."""
    found: dict[str, list[float]] = {}
    for cell in cells:
        for edit, values in cell["records"].items():
            if metric in values:
                found.setdefault(edit, []).append(values[metric])
    return {edit: statistics.fmean(values) for edit, values in found.items()}


def _row(test: EvaluationSpec, label: str, cells: Cells) -> dict[str, Any]:
    names = sorted({name for cell in cells for name in cell["metrics"]})
    row: dict[str, Any] = {"test": test.label, "editor": label, "base": cells[0]["base"], "metrics": {}}
    row["seeds"] = [cell["seed"] for cell in cells]
    row["editor_digests"] = [cell["editor_digest"] for cell in cells]
    row |= {key: cells[0][key] for key in ("method", "data", "data_sha256", "met")}
    for name in names:
        by_seed = [cell["metrics"][name]["mean"] for cell in cells if name in cell["metrics"]]
        row["metrics"][name] = {**estimate(list(_by_edit(cells, name).values())).as_dict(), "by_seed": by_seed}
    for cost in ("seconds_an_edit", "peak_bytes", "training_seconds", "training_peak_bytes"):
        values = [cell[cost] for cell in cells if cost in cell]
        if values:
            row[cost] = statistics.median(values)
    return row


def _of_same_seeds(first: Cells, second: Cells) -> tuple[Cells, Cells]:
    """What can be compared: where both were trained, only the seeds that both have; a ready editor has no seeds."""
    if not all("training_seconds" in cell for cell in (*first, *second)):
        return first, second
    both = {cell["seed"] for cell in first} & {cell["seed"] for cell in second}
    mine, theirs = ([cell for cell in cells if cell["seed"] in both] for cells in (first, second))
    return mine, theirs


def _difference(first: Cells, second: Cells, metric: str) -> dict[str, Any]:
    """The paired difference, and that of every seed; empty where there is nothing to compare."""
    differences = _differences(first, second, metric)
    if not differences:
        return {}
    found: dict[str, Any] = {**estimate(differences).as_dict()}
    if len(first) == len(second):
        pairs = zip(first, second, strict=True)
        each = [_differences([mine], [theirs], metric) for mine, theirs in pairs]
        found["by_seed"] = [round(statistics.fmean(values), 5) for values in each if values]
    return found


def _differences(first: Cells, second: Cells, metric: str) -> list[float]:
    mine, theirs = _by_edit(first, metric), _by_edit(second, metric)
    return [mine[edit] - theirs[edit] for edit in sorted(mine.keys() & theirs.keys())]


def _shown(metric: str, value: Mapping[str, float] | None) -> str:
    if value is None:
        return "–"
    mean, low, high = (_scaled(metric, value[key]) for key in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


def _by_seed(metric: str, value: Mapping[str, Any]) -> str:
    seeds = value.get("by_seed", ())
    return ", ".join(_scaled(metric, mean) for mean in seeds) if len(seeds) > 1 else "–"


def _scaled(metric: str, value: float) -> str:
    return f"{value if metric in ABSOLUTE else 100.0 * value:.1f}"


def _overview(experiment: Experiment, summary: Mapping[str, Any], metric: str) -> list[str]:
    """One metric of all tests and editors."""
    found = {(row["test"], row["editor"]): row["metrics"].get(metric) for row in summary["rows"]}
    lines = ["", f"## {metric}", "", f"| test | {' | '.join(experiment.editors)} |"]
    lines.append("|" + "---|" * (len(experiment.editors) + 1))
    for test in experiment.tests:
        cells = [_shown(metric, found.get((test.label, label))) for label in experiment.editors]
        lines.append(f"| {' | '.join((test.label, *cells))} |")
    return lines


def _met(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What base and editors met of a test in training, said once where they agree."""
    if not rows:
        return []
    said: dict[str, list[str]] = {}
    for row in rows:
        said.setdefault(row["met"]["editor"], []).append(row["editor"])
    editors = "; ".join(f"{', '.join(labels)}: {text}" for text, labels in said.items())
    return [f"{rows[0]['data']}. Base model: {rows[0]['met']['base']}. Editors: {editors}.", ""]


def as_markdown(experiment: Experiment, summary: Mapping[str, Any]) -> str:
    """A page: a table a test, with other people's numbers in columns of their own, then the differences."""
    seeds = ", ".join(map(str, summary["seeds"]))
    lines = [
        f"# {experiment.title}",
        "",
        f"{summary['edits']} edits a test, the same for all editors; seeds {seeds}; in percent with 95% intervals, "
        "bootstrap over edits. Times and memory: this machine "
        f"({summary['machine']['processor']}), the edits of a batch together; memory is the most that the "
        "process had held by then, with training where it trained.",
    ]
    if experiment.overview is not None:
        lines += _overview(experiment, summary, experiment.overview)
    for test in experiment.tests:
        rows = [row for row in summary["rows"] if row["test"] == test.label]
        sources = [
            source
            for source, labels in experiment.published.items()
            if any(test.label in tests for tests in labels.values())
        ]
        heads = [
            "editor",
            *test.metrics,
            "seeds",
            "ms an edit",
            "training, min",
            "peak, GB",
            *(f"{s} (published)" for s in sources),
        ]
        lines += ["", f"## {test.label}", "", *_met(rows), f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
        for row in rows:
            cells = [row["editor"], *(_shown(name, row["metrics"].get(name)) for name in test.metrics)]
            cells.append(str(len(row["seeds"])) if "training_seconds" in row else "–")
            cells.append(f"{1000 * row['seconds_an_edit']:.1f}")
            cells.append(f"{row['training_seconds'] / 60:.1f}" if "training_seconds" in row else "–")
            cells.append(f"{row['peak_bytes'] / 1e9:.2f}")
            for source in sources:
                numbers = experiment.published[source].get(row["editor"], {}).get(test.label)
                cells.append("–" if numbers is None else " / ".join("–" if n is None else f"{n:g}" for n in numbers))
            lines.append(f"| {' | '.join(cells)} |")
    if experiment.published:
        lines += ["", "Published numbers are of other base models and other edits; only their order can be compared."]
    if summary["differences"]:
        lines += ["", "## Differences", "", "Edit by edit, in points.", ""]
        lines += ["| test | metric | of | minus | difference | seed by seed |", "|---|---|---|---|---|---|"]
        lines += [
            f"| {d['test']} | {d['metric']} | {d['of']} | {d['minus']} | {_shown(d['metric'], d)} | "
            f"{_by_seed(d['metric'], d)} |"
            for d in summary["differences"]
        ]
    return "\n".join(lines) + "\n"


def draw(experiment: Experiment, summary: Mapping[str, Any], path: Path) -> None:
    """A picture: a panel a test, a group of bars an editor, with intervals. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    labels = list(experiment.editors)
    metrics = dict.fromkeys(metric for test in experiment.tests for metric in test.metrics if metric not in ABSOLUTE)
    colours = {metric: f"C{number}" for number, metric in enumerate(metrics)}
    columns = min(4, len(experiment.tests))
    lines = -(-len(experiment.tests) // columns)
    size = (max(3.2, 0.55 * len(labels) + 1) * columns, 3.9 * lines)
    figure, panels = pyplot.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained", sharey=True)
    for panel in panels.flat[len(experiment.tests) :]:
        panel.set_visible(False)
    for panel, test in zip(panels.flat, experiment.tests, strict=False):
        rows = {row["editor"]: row["metrics"] for row in summary["rows"] if row["test"] == test.label}
        shown = [m for m in test.metrics if m in colours and any(m in row for row in rows.values())]
        for number, metric in enumerate(shown):
            found = [
                (place, rows[label][metric]) for place, label in enumerate(labels) if metric in rows.get(label, {})
            ]
            x = [place + (number - (len(shown) - 1) / 2) * 0.8 / len(shown) for place, _ in found]
            y = [100 * value["mean"] for _, value in found]
            spread = [
                [100 * (value["mean"] - value["low"]) for _, value in found],
                [100 * (value["high"] - value["mean"]) for _, value in found],
            ]
            panel.bar(x, y, 0.8 / len(shown), yerr=spread, color=colours[metric], error_kw={"elinewidth": 0.8})
        panel.set_title(test.label, fontsize=9)
        panel.set_xticks(range(len(labels)), labels, rotation=60, ha="right", fontsize=7)
        panel.set_ylim(0, 104)  # a bar of 100 has its interval's end below the frame
        panel.grid(axis="y", alpha=0.3)
    handles = [Patch(color=colour, label=metric) for metric, colour in colours.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
