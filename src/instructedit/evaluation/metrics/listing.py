"""The table of all metrics for the documentation."""

from __future__ import annotations

from instructedit.evaluation.metrics.metric import Metric
from instructedit.evaluation.metrics.registry import registered_metrics


def metric_families() -> dict[str, Metric]:
    """Return one metric per family, by the family's name; ``locality/<kind>`` is one family."""
    families: dict[str, Metric] = {}
    for metric in registered_metrics():
        families.setdefault(metric.family, metric)
    return families


def metrics_as_markdown() -> str:
    """Return a Markdown table with one row per family of metrics."""
    lines = ["| metric | definition | formula | unit | better | group | caveat |", "|" + "---|" * 7]
    lines += [
        f"| `{name}` | {metric.definition} | {metric.formula} | {metric.unit} | {metric.direction} | {metric.group} | "
        f"{metric.caveat} |"
        for name, metric in metric_families().items()
    ]
    return "\n".join(lines)
