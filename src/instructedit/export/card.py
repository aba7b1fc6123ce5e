"""What an exported edit says about itself: its requests, for queries to a server, and a model card for people."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from safetensors.torch import save

from instructedit.deltas.delta import Delta
from instructedit.errors import DataError
from instructedit.records import EditRequest
from instructedit.storage.reading import read_bytes

#: The requests of an exported edit, as JSON: a file of a folder, a field of a GGUF file.
REQUESTS_FILE, REQUESTS_FIELD = "requests.json", "instructedit.requests"
_REQUESTS = TypeAdapter(tuple[EditRequest, ...])


def requests_as_json(delta: Delta) -> str:
    """Return the requests of a delta, for :func:`exported_requests`."""
    return _REQUESTS.dump_json(delta.metadata.requests, exclude_none=True).decode()


def exported_requests(adapter: Path) -> tuple[EditRequest, ...]:
    """Return the requests of an exported PEFT folder or GGUF file.

    Raises:
        DataError: it holds none, or they cannot be read.
    """
    if adapter.is_dir():
        content = read_bytes(adapter / REQUESTS_FILE)
    else:
        import gguf

        try:
            stored = gguf.GGUFReader(adapter).fields.get(REQUESTS_FIELD)
        except (OSError, ValueError) as error:
            raise DataError(f"cannot be read as GGUF: {error}", file=adapter) from None
        if stored is None:
            raise DataError("holds no requests; it was not written by `instructedit export`", file=adapter)
        content = str(stored.contents()).encode()
    try:
        return _REQUESTS.validate_json(content)
    except ValidationError as error:
        raise DataError(f"its requests are damaged: {error.errors()[0]['msg']}", file=adapter) from None


def content_hash(delta: Delta) -> str:
    """Return the SHA-256 of a delta's tensors and requests, 12 hex digits: the same edit has the same name."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in delta.tensors.items()}
    digest = hashlib.sha256(save(tensors))
    digest.update(delta.metadata.model_dump_json(include={"requests", "instruction"}).encode())
    return digest.hexdigest()[:12]


def card(delta: Delta, base_name: str, what: str, rank: int | None, library: str | None) -> str:
    """Return a model card as Markdown with its YAML header.

    Args:
        delta: the edit.
        base_name: the base model's name.
        what: the format in words.
        rank: of the adapter; None where there is none.
        library: that loads it, for the header.
    """
    return "\n".join(_lines(delta, base_name, what, rank, library)) + "\n"


def _lines(delta: Delta, base_name: str, what: str, rank: int | None, library: str | None) -> Iterator[str]:
    about = delta.metadata
    yield "---"
    yield f"base_model: {base_name}"
    if library is not None:
        yield f"library_name: {library}"
    yield "tags: [knowledge-editing, instructedit]"
    yield "---"
    yield ""
    yield f"# {len(about.requests)} edit(s) of {base_name}, as {what}"
    yield ""
    yield f"- edit: `{content_hash(delta)}`, made by {about.editor or 'an unknown editor'}"
    yield f"- base model: fingerprint `{about.base}`, loaded from {about.source or 'an unknown source'}"
    if rank is not None:
        yield f"- rank: {rank}"
    error = about.compression_error
    yield f"- relative error of the compression to a lower rank: {'not known' if error is None else f'{error:.4f}'}"
    if about.versions:
        yield "- versions: " + ", ".join(f"{name} {version}" for name, version in sorted(about.versions.items()))
    if about.instruction:
        yield ""
        yield "The instruction that states the scope:"
        yield ""
        yield from (f"> {line}" for line in about.instruction.splitlines())
    yield ""
    yield "| prompt | new answer | subject | task |"
    yield "| --- | --- | --- | --- |"
    for request in about.requests:
        cells = (request.prompt, request.target, request.subject or "", request.task or "")
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
