"""Options that several commands share, described once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[str, typer.Option("--model", help="`bundled`, a checkpoint folder, or a hub id.")]
EditorFile = Annotated[
    str, typer.Option("--editor", help="`bundled`, or an editor file written by `instructedit train`.")
]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto (as stored).")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, …; default cpu.")]
DeviceMap = Annotated[str | None, typer.Option(help="Accelerate's placement, for example `auto`.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the result as JSON to this file; - prints it.")]
