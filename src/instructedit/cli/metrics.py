"""``instructedit metrics``: list the metrics."""

from __future__ import annotations

from typing import Annotated

import typer

from instructedit.cli.console import emit_json, out, table
from instructedit.cli.options import JsonFile


def metrics(
    markdown: Annotated[bool, typer.Option(help="Print the full table in Markdown, as in docs/metrics.md.")] = False,
    json_: JsonFile = None,
) -> None:
    """List the metrics with their definition, unit, direction and group.

    `instructedit evaluate` computes the groups `core` and `extended`, and with `--text-metrics` or `--protocol
    generation` also `text`.
    """
    from instructedit.evaluation.metrics.listing import metric_families, metrics_as_markdown

    if markdown:
        out.print(metrics_as_markdown(), soft_wrap=True)
        return
    families = metric_families()
    fields = ("definition", "formula", "unit", "direction", "group", "caveat")
    content = {name: {key: str(getattr(metric, key)) for key in fields} for name, metric in families.items()}
    if emit_json(content, json_):
        return
    rows = table("metric", "definition", "unit", "better", "group")
    for name, metric in families.items():
        rows.add_row(name, metric.definition, metric.unit, metric.direction, metric.group)
    out.print(rows)
