"""Tensor files: equal content gives equal bytes, and no bit can change unseen."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from instructedit.deltas.saving import load_delta, save_delta
from instructedit.editors.instructedit import InstructEdit, InstructEditConfig
from instructedit.editors.saving import load_trained_editor, save_editor
from instructedit.errors import CheckpointError, DeltaError, EditorError
from instructedit.merging.combining import make_edit
from instructedit.models.language_model import LanguageModel
from instructedit.records import EditRequest
from instructedit.storage.checkpoints import load_checkpoint, save_checkpoint
from instructedit.storage.tensors import pack, tensors_digest, unpack
from instructedit.tasks.loading import load_task

TENSORS = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(3, dtype=torch.bfloat16), "ü": torch.tensor(5)}
HEADER = {"format": "own/1", "note": "naïve", "a": "b"}


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_what_is_packed_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(pack(TENSORS, HEADER))
    header, tensors = unpack(path, "own/1", "ours", EditorError)
    assert header == {**HEADER, "sha256": tensors_digest(TENSORS)}
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], value) for name, value in TENSORS.items())


PRINTS = """
import hashlib, torch
from instructedit.storage.tensors import pack
tensors = {f"name{n}": torch.full((n + 1,), float(n)) for n in range(30)}
print(hashlib.sha256(pack(tensors, {f"key{n}": str(n) for n in range(30)})).hexdigest())
"""


def test_equal_tensors_give_equal_bytes_in_two_processes() -> None:
    found = {
        subprocess.run([sys.executable, "-c", PRINTS], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert len(found) == 1


def test_order_decides_nothing() -> None:
    assert pack(dict(reversed(TENSORS.items())), dict(reversed(HEADER.items()))) == pack(TENSORS, HEADER)


def test_every_flipped_bit_of_a_small_file_is_seen(tmp_path: Path) -> None:
    content, path = pack(TENSORS, HEADER), tmp_path / "file"
    for bit in range(0, 8 * len(content), 5):
        path.write_bytes(flipped(content, bit))
        with pytest.raises(EditorError, match=r"^file .*file: "):
            unpack(path, "own/1", "ours", EditorError)


def test_other_files_are_distinguished(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(pack(TENSORS, HEADER))
    with pytest.raises(EditorError, match="written by another version"):
        unpack(path, "own/2", "ours", EditorError)
    with pytest.raises(EditorError, match=r"is not theirs \(own/1\)"):
        unpack(path, "their/1", "theirs", EditorError)
    for content in (b"", b"{}", path.read_bytes()[:-1], b"\xff" * 64):
        path.write_bytes(content)
        with pytest.raises(EditorError, match="cannot be read as ours"):
            unpack(path, "own/1", "ours", EditorError)
    with pytest.raises(EditorError, match="nowhere: cannot be read"):
        unpack(tmp_path / "nowhere", "own/1", "ours", EditorError)


@pytest.fixture(scope="module")
def files(gpt2: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A delta, an editor and a checkpoint of a tiny model."""
    folder = tmp_path_factory.mktemp("tensors")
    torch.manual_seed(0)
    editor = InstructEdit.create(InstructEditConfig(blocks=2, rank=8, embedding_dim=8), gpt2)
    save_editor(editor, gpt2, folder / "editor")
    save_checkpoint(folder / "checkpoint", editor, [torch.optim.Adam(editor.parameters())], {"step": 1}, {})
    request = EditRequest(prompt="Lena was born in", target="Oston", subject="Lena")
    save_delta(make_edit(editor.eval(), gpt2, [request], load_task("counterfact")), folder / "delta")
    return folder


@pytest.mark.parametrize("name", ["delta", "editor", "checkpoint"])
def test_one_flipped_bit_is_seen_in_every_kind_of_file(
    gpt2: LanguageModel, files: Path, tmp_path: Path, name: str
) -> None:
    content, path = (files / name).read_bytes(), tmp_path / name
    editor = InstructEdit.create(InstructEditConfig(blocks=2, rank=8, embedding_dim=8), gpt2)

    def load() -> None:
        if name == "delta":
            load_delta(path)
        elif name == "editor":
            load_trained_editor(path, gpt2)
        else:
            load_checkpoint(path, editor, [torch.optim.Adam(editor.parameters())], {})

    path.write_bytes(content)
    load()
    rng = random.Random(0)
    for _ in range(20):
        path.write_bytes(flipped(content, rng.randrange(8 * len(content))))
        with pytest.raises((DeltaError, EditorError, CheckpointError)):
            load()
