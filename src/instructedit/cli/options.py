"""Options that several commands share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from instructedit.cli.hub import offline_if_unreachable
from instructedit.errors import DataError
from instructedit.storage.reading import parse_json, short_repr
from instructedit.storage.writing import check_writable


def writable(context: typer.Context, path: Path | None) -> Path | None:
    """Check an output file before the command starts, so that a long run does not fail at its end.

    This is the callback of every option that names an output file.

    Raises:
        DataError: the file cannot be written.
    """
    if path is not None and str(path) != "-" and not context.resilient_parsing:
        check_writable(path)
    return path


def known_model(context: typer.Context, name: str | None) -> str | None:
    """Prepare the hub client for an option that may be a hub id (see :mod:`instructedit.cli.hub`)."""
    return name if context.resilient_parsing else offline_if_unreachable(name)


def _parse_device_map(text: Any) -> Any:
    """Parse ``--device-map``: the name of a strategy or device, or a JSON object from module name to device."""
    if not isinstance(text, str):
        return text  # typer also passes the default, None
    if re.fullmatch(r"[a-z][\w:]*", text.strip()):  # auto, balanced_low_0, cuda:0: checked when the model is loaded
        return text.strip()
    try:
        device_map = parse_json(text)
    except DataError as error:
        raise typer.BadParameter(f"must be auto or a JSON object: {str(error).split('. The file')[0]}") from None
    if not isinstance(device_map, dict):
        raise typer.BadParameter(f"must be auto or a JSON object, not {short_repr(device_map)}")
    for module, device in device_map.items():
        if not isinstance(device, str) and (not isinstance(device, int) or isinstance(device, bool) or device < 0):
            raise typer.BadParameter(
                f"the device of {module!r} must be a name such as cpu or cuda:0, a GPU number or disk, not "
                f"{short_repr(device)}"
            )
    return device_map


Model = Annotated[
    str,
    typer.Option(
        "--model",
        callback=known_model,
        help="Base model: a name that `instructedit models` lists, a checkpoint folder, a GGUF file, or a hub id.",
    ),
]
EditorFile = Annotated[
    str | None,
    typer.Option(
        "--editor",
        help="Editor: a shipped one (`bundled`, `bundled-core`, `bundled-mend`, `smollm2`), each for one model; a file "
        "written by `instructedit train`; a method that needs no training, such as `ft` or `rome` (`instructedit "
        "editors` lists all); or a YAML file with the `name` of a method and its settings. Default: the shipped editor "
        "of the model.",
    ),
]
Dtype = Annotated[
    str, typer.Option(help="Data type of the weights: float32, bfloat16, float16, or auto (as in the checkpoint).")
]
Device = Annotated[
    str | None,
    typer.Option(help="Device of the model: cpu, cuda, cuda:1, …, or auto (a GPU if one is available). Default: cpu."),
]
DeviceMap = Annotated[
    Any,
    typer.Option(
        parser=_parse_device_map,
        metavar="auto|JSON",
        help="Distribute the model over several devices instead of --device: `auto`, or a device for each module, "
        '`{"transformer.h.0": "cpu", …}`. Modules on `disk` are loaded for every forward pass.',
    ),
]
DataFolder = Annotated[
    Path | None,
    typer.Option("--data", help="Folder of the data sets. Default: the environment variable INSTRUCTEDIT_DATA."),
]
TemplateFile = Annotated[
    Path | None,
    typer.Option(
        "--template-file",
        help="Use the instruction templates of this YAML file, as written by `instructedit instructions optimize`, "
        "instead of the task's own.",
    ),
]
JsonFile = Annotated[
    Path | None,
    typer.Option(
        "--json",
        callback=writable,
        help="Also write the result as JSON to this file. With `-` the JSON is the only output on standard output.",
    ),
]
