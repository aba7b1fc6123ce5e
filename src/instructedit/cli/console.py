"""What every command shares: the consoles, progress bars, and quiet libraries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from instructedit.writing import write_atomically

out = Console()
err = Console(stderr=True)


def progress() -> Progress:
    """A progress bar on standard error, so that standard output stays clean for results."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=err,
        transient=True,
    )


def quiet_libraries() -> None:
    """Keep the libraries' own bars and advice out of the commands' output."""
    import warnings

    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=UserWarning, module="torch.nn.modules.transformer")


def emit_json(value: Any, target: Path | None = None) -> None:
    """One JSON value on standard output, or into a file."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    if target is None or str(target) == "-":
        typer.echo(text)
    else:
        write_atomically(target, (text + "\n").encode())
