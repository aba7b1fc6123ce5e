"""Options that several commands share, described once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

Model = Annotated[str, typer.Option("--model", help="`bundled`, a checkpoint folder, or a hub id.")]
EditorFile = Annotated[
    str,
    typer.Option(
        "--editor",
        help="`bundled`, `bundled-core`, `bundled-mend`, a file written by `instructedit train`, a method that needs "
        "no training (`ft`, `lora`, `rome`, `memit`, `grace`, `calinet`, `in-context`), or a YAML file with its `name` "
        "and numbers.",
    ),
]
TrainedEditor = Annotated[
    str,
    typer.Option(
        "--editor", help="`bundled`, `bundled-core`, `bundled-mend`, or a file written by `instructedit train`."
    ),
]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto (as stored).")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, … or auto; default cpu.")]


def _placement(text: str | dict[str, str] | None) -> str | dict[str, str] | None:
    """``auto`` and its like, or a JSON object from module name to device."""
    if not isinstance(text, str) or not text.lstrip().startswith("{"):
        return text
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise typer.BadParameter(f"not a JSON object: {error}") from None
    return {str(key): value for key, value in found.items()}


DeviceMap = Annotated[
    Any,
    typer.Option(
        parser=_placement,
        metavar="auto|JSON",
        help='Accelerate\'s placement: `auto`, or a device for every part, `{"transformer.h.0": "cpu", …}`. '
        "What goes to `disk` is read when needed.",
    ),
]
BankFile = Annotated[
    Path | None, typer.Option("--bank", help="Instructions from this file, as `instructions optimize` writes it.")
]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the result as JSON to this file; - prints it.")]
