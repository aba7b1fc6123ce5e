"""``instructedit metrics``: what an evaluation measures."""

from __future__ import annotations

from typing import Annotated

import typer

from instructedit.cli.console import emit_json, out, table
from instructedit.cli.options import JsonFile


def metrics(
    markdown: Annotated[bool, typer.Option(help="Print the Markdown table of docs/metrics.md.")] = False,
    json_: JsonFile = None,
) -> None:
    """List the metrics: what each measures, its unit, which values are better, and when it is measured.

    Groups: `core` metrics are always measured, `extended` ones by default, `text` ones with `--text-metrics`.
    """
    from instructedit.evaluation.metrics.listing import metric_families, metrics_as_markdown

    if markdown:
        out.print(metrics_as_markdown(), soft_wrap=True)
        return
    families = metric_families()
    if json_ is not None:
        fields = ("definition", "formula", "unit", "direction", "group", "caveat")
        emit_json(
            {name: {key: str(getattr(metric, key)) for key in fields} for name, metric in families.items()}, json_
        )
        return
    rows = table("metric", "definition", "unit", "better", "group")
    for name, metric in families.items():
        rows.add_row(name, metric.definition, metric.unit, metric.direction, metric.group)
    out.print(rows)
