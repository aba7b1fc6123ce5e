"""``instructedit export``: write saved edits in the formats that other programs load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from instructedit.cli.console import emit_json, err, out
from instructedit.cli.options import Device, Dtype, JsonFile, Model
from instructedit.cli.threads import prepare_computation
from instructedit.errors import DataError

if TYPE_CHECKING:
    from instructedit.deltas.delta import Delta
    from instructedit.models.language_model import LanguageModel

Edits = Annotated[
    list[Path],
    typer.Argument(metavar="EDITS...", help="Deltas as written by `instructedit edit --out`; several are added up."),
]
Format = Annotated[
    Literal["peft", "gguf", "merged", "merged-gguf"],
    typer.Option(
        "--format",
        help="`peft`: a LoRA folder for PEFT, vLLM and SGLang. `gguf`: a LoRA file for llama.cpp. `merged`: a Hugging "
        "Face checkpoint of the edited model. `merged-gguf`: the edited model as one GGUF file, made from --gguf.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", help="The folder or file to write. Default: named by the content of the edits, in this folder."
    ),
]
Rank = Annotated[
    int | None,
    typer.Option(min=1, help="Compress to this rank first and print the relative error. vLLM loads 16 by default."),
]
BaseName = Annotated[
    str | None,
    typer.Option(help="What PEFT is to load the base model from: a hub id or a folder. Default: --model's."),
]
Source = Annotated[
    Path | None, typer.Option("--gguf", help="The base model as a GGUF file, for `merged-gguf`; it is not changed.")
]
Kind = Annotated[
    str,
    typer.Option(
        "--type", help="Quantisation of the edited matrices in `merged-gguf`; a coarse one may lose the edit."
    ),
]
Others = Annotated[
    str | None,
    typer.Option(help="Quantisation of all other matrices in `merged-gguf`. Default: as they are in the file."),
]


def export(
    edits: Edits,
    format_: Format = "peft",
    out_path: Out = None,
    model: Model = "bundled",
    rank: Rank = None,
    base_name: BaseName = None,
    gguf: Source = None,
    kind: Kind = "Q8_0",
    others: Others = None,
    dtype: Dtype = "float32",
    device: Device = None,
    json_: JsonFile = None,
) -> None:
    """Write saved edits in the formats that other programs load, without InstructEdit.

    For example `instructedit export e.safetensors --model smollm2-135m-instruct --format gguf --out e.gguf`, and then
    `llama-server -m SmolLM2.gguf --lora e.gguf`. To undo an edit, drop the adapter; the base model is never changed.
    Layers that are not plain linear ones, as in GPT-2, can only be merged: servers load no LoRA for them.
    """
    prepare_computation()
    from instructedit.deltas.saving import load_sum
    from instructedit.export.card import content_hash
    from instructedit.models.language_model import load_language_model

    if (gguf is not None) != (format_ == "merged-gguf"):
        raise DataError("--gguf is needed for --format merged-gguf, and for no other format")
    delta = load_sum(edits)
    language_model = load_language_model(model, dtype=dtype, device=device)
    if rank is not None:
        delta = delta.compress(rank)
    content, ending = content_hash(delta), ".gguf" if "gguf" in format_ else ""
    target = out_path or Path(f"edit-{content}{ending}")
    name = base_name or _source_of(model)
    written, warnings = _write(delta, language_model, format_, target, name, gguf, kind, others)
    result = {
        "format": format_,
        "out": str(target),
        "edits": len(delta.metadata.requests),
        "content": content,
        "rank": written,
        "compression_error": delta.metadata.compression_error,
        "warnings": list(warnings),
    }
    if not emit_json(result, json_):
        rank_text = "" if written is None else f", rank {written}"
        out.print(f"{len(delta.metadata.requests)} edit(s) written to {target} ({format_}{rank_text})")
        if rank is not None:
            error = delta.metadata.compression_error
            out.print(f"relative error of the compression: {'not known' if error is None else f'{error:.4f}'}")
        for warning in warnings:
            err.print(f"warning: {warning}")


def _write(
    delta: Delta,
    language_model: LanguageModel,
    format_: str,
    target: Path,
    name: str,
    gguf: Path | None,
    kind: str,
    others: str | None,
) -> tuple[int | None, tuple[str, ...]]:
    """Write one format; return the adapter's rank and warnings."""
    if format_ == "peft":
        from instructedit.export.peft_folder import export_peft

        adapter = export_peft(delta, language_model, target, base_name=name)
        return adapter.rank, adapter.warnings
    if format_ == "merged":
        from instructedit.export.merged import export_merged

        export_merged(delta, language_model, target, base_name=name)
        return None, ()
    from instructedit.export.gguf_files import TYPES, export_gguf_adapter, merge_into_gguf

    for option, value in (("--type", kind), ("--others", others)):
        if value is not None and value not in TYPES:
            raise DataError(f"{option} must be one of {', '.join(TYPES)}, not {value}")
    if gguf is None:
        adapter = export_gguf_adapter(delta, language_model, target)
        return adapter.rank, adapter.warnings
    merge_into_gguf(delta, language_model, gguf, target, kind=kind, others=others)
    return None, ()


def _source_of(model: str) -> str:
    """Return what another program loads the base model from: the folder of a model with a short name."""
    from instructedit.models.catalogue import known_models

    known = known_models().get(model)
    return str(known.folder) if known is not None else model
