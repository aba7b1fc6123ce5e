"""Options that several commands share, described once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from instructedit.cli.hub import offline_if_unreachable
from instructedit.errors import DataError
from instructedit.storage.reading import parse_json, quoted
from instructedit.storage.writing import check_writable


def writable(context: typer.Context, path: Path | None) -> Path | None:
    """Callback of every option that names a file to write: hours of work are not to end in a file that cannot be.

    Raises:
        DataError: it cannot be written.
    """
    if path is not None and str(path) != "-" and not context.resilient_parsing:
        check_writable(path)
    return path


def known_model(context: typer.Context, name: str | None) -> str | None:
    """Callback of every option that may hold a hub id (:mod:`instructedit.cli.hub`)."""
    return name if context.resilient_parsing else offline_if_unreachable(name)


Model = Annotated[
    str, typer.Option("--model", callback=known_model, help="`bundled`, a checkpoint folder, or a hub id.")
]
EditorFile = Annotated[
    str,
    typer.Option(
        "--editor",
        help="`bundled`, `bundled-core`, `bundled-mend`, a file written by `instructedit train`, a method that needs "
        "no training (`rome`; `instructedit editors` lists all), or a YAML file with its `name` and fields.",
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


def _placement(text: Any) -> Any:
    """``auto`` and its like, or a JSON object from module name to device."""
    if not isinstance(text, str):
        return text  # typer gives the default by here, too
    if re.fullmatch(r"[a-z][\w:]*", text.strip()):  # auto, balanced_low_0, cuda:0: the library knows which there are
        return text.strip()
    try:
        found = parse_json(text)
    except DataError as error:
        raise typer.BadParameter(f"takes auto or a JSON object: {str(error).split('. The file')[0]}") from None
    if not isinstance(found, dict):
        raise typer.BadParameter(f"takes auto or a JSON object, not {quoted(found)}")
    for part, device in found.items():
        if not isinstance(device, str) and (not isinstance(device, int) or isinstance(device, bool) or device < 0):
            raise typer.BadParameter(f"{part!r} takes a device such as cpu, cuda:0 or 0, not {quoted(device)}")
    return found


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
JsonFile = Annotated[
    Path | None,
    typer.Option(
        "--json", callback=writable, help="Write the result as JSON to this file; - prints it and nothing else."
    ),
]
