"""The report of an experiment: estimates over edits and seeds, paired differences, a Markdown page and a figure."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from instructedit.evaluation.intervals import estimate
from instructedit.evaluation.metrics import get_metric
from instructedit.experiments.cells import cell_file, kept_cell, settings
from instructedit.experiments.plan import Entry, EvaluationSpec, Experiment
from instructedit.storage.pictures import save_figure

#: The scores of one editor on one test, one cell per seed.
Cells = Sequence[Mapping[str, Any]]


def summarise(experiment: Experiment, out: Path) -> dict[str, Any]:
    """Summarise all scores of an experiment for JSON; what has not been run yet is left out.

    A metric's mean and 95% interval are over edits, each averaged over the seeds first; ``by_seed`` holds the mean of
    every seed. Differences are paired by edit; between trained editors they are over the seeds that both have.

    Args:
        experiment: the tests and editors.
        out: folder of the experiment's scores.

    Returns:
        ``rows`` (one per test and editor), ``differences`` (one per comparison, test and metric), and the settings.
    """
    cells = {
        (test.label, label): _cells(experiment, entry, label, test, out)
        for test in experiment.tests
        for label, entry in experiment.editors.items()
    }
    rows = [
        _row(test, label, cells[test.label, label]) | _parts(experiment, test, cells[test.label, label])
        for test in experiment.tests
        for label in experiment.editors
        if cells[test.label, label]
    ]
    differences = [
        {"test": test.label, "of": first, "minus": second, "metric": metric, **difference}
        for first, second in experiment.compare
        for test in experiment.tests
        for metric in test.metrics
        if (difference := _difference(*_of_same_seeds(cells[test.label, first], cells[test.label, second]), metric))
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
    cells = (
        kept_cell(cell_file(out, label, seed, test), settings(experiment, entry, seed, test))
        for seed in experiment.seeds
    )
    return [cell for cell in cells if cell is not None]


def _by_edit(cells: Cells, metric: str) -> dict[str, float]:
    """Return every edit's value, averaged over the seeds."""
    by_edit: dict[str, list[float]] = {}
    for cell in cells:
        for edit, values in cell["records"].items():
            if metric in values:
                by_edit.setdefault(edit, []).append(values[metric])
    return {edit: statistics.fmean(values) for edit, values in by_edit.items()}


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


def _parts(experiment: Experiment, test: EvaluationSpec, cells: Cells) -> dict[str, Any]:
    """Return the metrics by what the base model knew before the edit, if the experiment has `by_knowledge`."""
    if not experiment.by_knowledge:
        return {}
    known, certainty = _by_edit(cells, "known"), _by_edit(cells, "certainty")
    parts = {
        "known": {edit for edit, value in known.items() if value == 1},
        "unknown": {edit for edit, value in known.items() if value < 1},
    }
    ordered = sorted(certainty, key=certainty.__getitem__)
    for number, name in enumerate(("least certain third", "middle third", "most certain third")):
        parts[name] = set(ordered[len(ordered) * number // 3 : len(ordered) * (number + 1) // 3])
    by_edit = {metric: _by_edit(cells, metric) for metric in test.metrics}
    return {
        "by_knowledge": {
            name: {
                metric: estimate([values[edit] for edit in sorted(edits & values.keys())]).as_dict()
                for metric, values in by_edit.items()
                if edits & values.keys()
            }
            for name, edits in parts.items()
            if edits
        }
    }


def _of_same_seeds(first: Cells, second: Cells) -> tuple[Cells, Cells]:
    """Return the cells of common seeds if both editors were trained; an editor without training has no seeds."""
    if not all("training_seconds" in cell for cell in (*first, *second)):
        return first, second
    common = {cell["seed"] for cell in first} & {cell["seed"] for cell in second}
    return [cell for cell in first if cell["seed"] in common], [cell for cell in second if cell["seed"] in common]


def _difference(first: Cells, second: Cells, metric: str) -> dict[str, Any]:
    """Return the paired difference, over all seeds and by seed; empty where there is nothing to compare."""
    differences = _differences(first, second, metric)
    if not differences:
        return {}
    summary: dict[str, Any] = {**estimate(differences).as_dict()}
    if len(first) == len(second):
        by_seed = [_differences([cell], [other], metric) for cell, other in zip(first, second, strict=True)]
        summary["by_seed"] = [round(statistics.fmean(values), 5) for values in by_seed if values]
    return summary


def _differences(first: Cells, second: Cells, metric: str) -> list[float]:
    minuends, subtrahends = _by_edit(first, metric), _by_edit(second, metric)
    return [minuends[edit] - subtrahends[edit] for edit in sorted(minuends.keys() & subtrahends.keys())]


def _with_interval(metric: str, value: Mapping[str, float] | None) -> str:
    if value is None:
        return "–"
    mean, low, high = (get_metric(metric).unit.render(value[key]) for key in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


def _by_seed(metric: str, value: Mapping[str, Any]) -> str:
    means = value.get("by_seed", ())
    return ", ".join(get_metric(metric).unit.render(mean) for mean in means) if len(means) > 1 else "–"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    return [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads), *(f"| {' | '.join(row)} |" for row in rows)]


def _overview(experiment: Experiment, summary: Mapping[str, Any], metric: str) -> list[str]:
    """Return a table of one metric by test and editor."""
    values = {(row["test"], row["editor"]): row["metrics"].get(metric) for row in summary["rows"]}
    rows = [
        [test.label, *(_with_interval(metric, values.get((test.label, label))) for label in experiment.editors)]
        for test in experiment.tests
    ]
    return ["", f"## {metric}", "", *_table(["test", *experiment.editors], rows)]


def _training_data(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line on whether base model and editors were trained on a test's data; editors alike are joined."""
    if not rows:
        return []
    labels_by_text: dict[str, list[str]] = {}
    for row in rows:
        labels_by_text.setdefault(row["met"]["editor"], []).append(row["editor"])
    editors = "; ".join(f"{', '.join(labels)}: {text}" for text, labels in labels_by_text.items())
    return [f"{rows[0]['data']}. Base model: {rows[0]['met']['base']}. Editors: {editors}.", ""]


def _test_section(experiment: Experiment, summary: Mapping[str, Any], test: EvaluationSpec) -> list[str]:
    """Return one test's table, one row per editor, with published numbers in columns of their own."""
    rows = [row for row in summary["rows"] if row["test"] == test.label]
    sources = [
        source
        for source, labels in experiment.published.items()
        if any(test.label in tests for tests in labels.values())
    ]
    heads = ["editor", *test.metrics, "seeds", "ms per edit", "training, min", "peak, GB"]
    heads += [f"{source} (published)" for source in sources]
    lines = []
    for row in rows:
        trained = "training_seconds" in row
        cells = [row["editor"], *(_with_interval(name, row["metrics"].get(name)) for name in test.metrics)]
        cells.append(str(len(row["seeds"])) if trained else "–")
        cells.append(f"{1000 * row['seconds_an_edit']:.1f}")
        cells.append(f"{row['training_seconds'] / 60:.1f}" if trained else "–")
        cells.append(f"{row['peak_bytes'] / 1e9:.2f}")
        for source in sources:
            numbers = experiment.published[source].get(row["editor"], {}).get(test.label)
            cells.append("–" if numbers is None else " / ".join("–" if n is None else f"{n:g}" for n in numbers))
        lines.append(cells)
    return ["", f"## {test.label}", "", *_training_data(rows), *_table(heads, lines)]


def _knowledge_section(experiment: Experiment, summary: Mapping[str, Any], test: EvaluationSpec) -> list[str]:
    """Return one test's table of the edits that the base model knew, did not know, and was more or less sure of."""
    heads = ["editor", "facts before the edit", "edits", *test.metrics]
    rows = [
        [row["editor"], part, str(max((value["count"] for value in values.values()), default=0))]
        + [_with_interval(metric, values.get(metric)) for metric in test.metrics]
        for row in summary["rows"]
        if row["test"] == test.label
        for part, values in row.get("by_knowledge", {}).items()
    ]
    return ["", *_table(heads, rows)] if rows else []


def _differences_section(differences: Sequence[Mapping[str, Any]]) -> list[str]:
    heads = ["test", "metric", "editor", "minus", "difference", "difference per seed"]
    rows = [
        [d["test"], d["metric"], d["of"], d["minus"], _with_interval(d["metric"], d), _by_seed(d["metric"], d)]
        for d in differences
    ]
    return ["", "## Differences", "", "Paired over edits, in percentage points.", "", *_table(heads, rows)]


def as_markdown(experiment: Experiment, summary: Mapping[str, Any]) -> str:
    """Return a Markdown page: the overview, a table per test, and the differences.

    Args:
        experiment: the tests and editors.
        summary: of its scores, by :func:`summarise`.
    """
    seeds = ", ".join(map(str, summary["seeds"]))
    lines = [
        f"# {experiment.title}",
        "",
        f"{summary['edits']} edits per test, the same for all editors; seeds {seeds}. Metrics in percent with 95% "
        f"intervals (bootstrap over edits). Times were measured on {summary['machine']['processor']} with batched "
        "edits. Memory is the peak of the process, including training if the editor was trained in it.",
    ]
    if experiment.overview is not None:
        lines += _overview(experiment, summary, experiment.overview)
    for test in experiment.tests:
        lines += _test_section(experiment, summary, test)
        lines += _knowledge_section(experiment, summary, test)
    if experiment.published:
        lines += ["", "Published numbers are for other base models and other edits; only their order can be compared."]
    if summary["differences"]:
        lines += _differences_section(summary["differences"])
    return "\n".join(lines) + "\n"


def draw(experiment: Experiment, summary: Mapping[str, Any], path: Path) -> None:
    """Draw a figure with a panel per test and a group of bars per editor, with intervals. Needs matplotlib.

    Metrics that are not shown in percent are left out.

    Args:
        experiment: the tests and editors.
        summary: of its scores, by :func:`summarise`.
        path: the PNG file to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    labels = list(experiment.editors)
    metrics = dict.fromkeys(metric for test in experiment.tests for metric in test.metrics)
    colours = {
        metric: f"C{number}"
        for number, metric in enumerate(metric for metric in metrics if get_metric(metric).unit.in_percent)
    }
    columns = min(4, len(experiment.tests))
    lines = -(-len(experiment.tests) // columns)
    size = (max(3.2, 0.55 * len(labels) + 1) * columns, 3.9 * lines)
    figure, panels = pyplot.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained", sharey=True)
    for panel in panels.flat[len(experiment.tests) :]:
        panel.set_visible(False)
    for panel, test in zip(panels.flat, experiment.tests, strict=False):
        rows = {row["editor"]: row["metrics"] for row in summary["rows"] if row["test"] == test.label}
        _draw_bars(panel, labels, rows, {metric: colours[metric] for metric in test.metrics if metric in colours})
        panel.set_title(test.label, fontsize=9)
        panel.set_xticks(range(len(labels)), labels, rotation=60, ha="right", fontsize=7)
        panel.set_ylim(0, 104)  # a bar of 100 has its interval's end below the frame
        panel.grid(axis="y", alpha=0.3)
    handles = [Patch(color=colour, label=metric) for metric, colour in colours.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), fontsize=8)
    save_figure(figure, path)
    pyplot.close(figure)


def _draw_bars(
    panel: Any, labels: Sequence[str], rows: Mapping[str, Mapping[str, Any]], colours: Mapping[str, str]
) -> None:
    """Draw one test's bars: a group per editor in ``labels``, a bar per metric in ``colours`` that has values."""
    measured = [metric for metric in colours if any(metric in values for values in rows.values())]
    for number, metric in enumerate(measured):
        positions = [position for position, label in enumerate(labels) if metric in rows.get(label, {})]
        values = [rows[labels[position]][metric] for position in positions]
        offset = (number - (len(measured) - 1) / 2) * 0.8 / len(measured)
        panel.bar(
            [position + offset for position in positions],
            [100 * value["mean"] for value in values],
            0.8 / len(measured),
            yerr=[
                [100 * (value["mean"] - value["low"]) for value in values],
                [100 * (value["high"] - value["mean"]) for value in values],
            ],
            color=colours[metric],
            error_kw={"elinewidth": 0.8},
        )
