"""``instructedit editors``: list the editing methods."""

from __future__ import annotations

from dataclasses import asdict

from instructedit.cli.console import emit_json, out, quiet_libraries, table
from instructedit.cli.options import JsonFile


def editors(json_: JsonFile = None) -> None:
    """List the editing methods, including those of other installed packages.

    A direct method needs no training and is selected by its name: `--editor rome`. A trained method needs an editor
    file. `smollm2` ships for SmolLM2-135M-Instruct; `bundled`, `bundled-core` and `bundled-mend` for the bundled model;
    `instructedit train` writes new ones.
    """
    quiet_libraries()
    from instructedit.editors.registry import registered_editors

    methods = registered_editors()
    if emit_json({name: asdict(summary) for name, summary in methods.items()}, json_):
        return
    rows = table("method", "kind", "uses the instruction", "summary", "source")
    for name, method in methods.items():
        kind = "trained" if method.needs_training else "direct"
        rows.add_row(name, kind, "yes" if method.reads_instruction else "no", method.summary, method.paper)
    out.print(rows)
