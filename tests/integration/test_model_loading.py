"""Loading a model: a checkpoint's own code is never run, and whatever is wrong with it is a ModelError that says it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from instructedit.cli.app import app
from instructedit.editors.mend import Mend
from instructedit.editors.saving import save_editor
from instructedit.errors import DataError, ModelError
from instructedit.models.language_model import LanguageModel, load_language_model
from instructedit.models.text import TextEncoder
from instructedit.storage.tensors import HEADER_DIGEST, TENSORS_DIGEST, pack

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """A tiny GPT-2's checkpoint that the test may damage."""
    return Path(shutil.copytree(checkpoint("gpt2"), tmp_path / "model"))


def change_json(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def refused(source: Any, *words: str, **how: Any) -> str:
    """The message of the ModelError that a load ends in, which says all these words."""
    with pytest.raises(ModelError) as found:
        load_language_model(source, **how)
    for word in words:
        assert word in str(found.value), str(found.value)
    return str(found.value)


# Code of the checkpoint's own.

CODE = """
from pathlib import Path
Path({marker!r}).write_text("ran")
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
class OwnConfig(PretrainedConfig):
    model_type = "own"
class OwnModel(PreTrainedModel):
    config_class = OwnConfig
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""
OWN = {
    "AutoConfig": "own.OwnConfig",
    "AutoModel": "own.OwnModel",
    "AutoModelForCausalLM": "own.OwnModel",
    "AutoTokenizer": ["own.OwnTokenizer", "own.OwnTokenizer"],
}


@pytest.fixture
def marker(folder: Path, tmp_path: Path) -> Path:
    """A file that is there once the folder's code has run."""
    path = tmp_path / "ran"
    (folder / "own.py").write_text(CODE.format(marker=str(path)))
    return path


def with_yes(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A command whose standard input says yes to everything."""
    return subprocess.run(
        [sys.executable, "-m", "instructedit", *arguments],
        input="y\n" * 1000,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        timeout=120,
    )


def test_code_of_a_model_is_never_run_even_on_yes(folder: Path, marker: Path) -> None:
    change_json(folder / "config.json", model_type="own", auto_map=OWN)
    done = with_yes("doctor", "--model", str(folder))
    assert not marker.exists()
    assert done.returncode == 2
    assert "never run" in done.stderr
    assert "[y/N]" not in done.stdout + done.stderr


def test_code_of_a_tokenizer_is_never_run_even_on_yes(folder: Path, marker: Path) -> None:
    change_json(folder / "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=OWN)
    done = with_yes("doctor", "--model", str(folder))
    assert not marker.exists()
    assert "[y/N]" not in done.stdout + done.stderr


def test_code_of_an_editors_sentence_encoder_is_never_run_even_on_yes(
    folder: Path, marker: Path, checkpoint: Callable[[str], Path], gpt2: LanguageModel, new_editor: Callable[..., Mend]
) -> None:
    change_json(folder / "config.json", model_type="own", auto_map=OWN)
    change_json(folder / "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=OWN)
    file = folder / "editor.safetensors"
    save_editor(new_editor(gpt2), gpt2, file)
    with safe_open(str(file), framework="pt") as stored:
        header = dict(stored.metadata())
    header = {key: value for key, value in header.items() if key not in (HEADER_DIGEST, TENSORS_DIGEST)}
    config = json.loads(header["config"]) | {"encoder": "sentence", "sentence_encoder": str(folder)}
    file.write_bytes(pack(load_file(file), header | {"config": json.dumps(config)}))
    done = with_yes("doctor", "--model", str(checkpoint("gpt2")), "--editor", str(file))
    assert not marker.exists()
    assert done.returncode == 2
    assert "cannot load the sentence encoder" in done.stderr
    assert "never run" in done.stderr
    assert "[y/N]" not in done.stdout + done.stderr


def test_a_known_model_that_also_brings_code_is_loaded_without_it(folder: Path, marker: Path) -> None:
    change_json(folder / "config.json", auto_map=OWN)
    assert load_language_model(folder).structure.hidden == 32
    assert not marker.exists()


# Weights.


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(folder: Path, number: float) -> None:
    tensors = load_file(folder / WEIGHTS)
    name = next(name for name in tensors if "h.2.mlp.c_fc.weight" in name)
    tensors[name][3, 3] = number
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    refused(folder, "NaN or infinity", "h.2.mlp.c_fc.weight")


def test_weights_of_other_shapes_are_refused(folder: Path) -> None:
    change_json(folder / "config.json", n_inner=96)
    refused(folder, "h.0.mlp.c_fc.weight", "(32, 80)", "(32, 96)", "config.json")


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:4],
        lambda content: content[:200],
        lambda content: content[:-100],
        lambda content: b"\xff" * 8 + content[8:],
        lambda content: content[:8] + b"[" * 500 + content[508:],
    ],
    ids=["empty", "no length", "half a header", "half a tensor", "huge header", "no header"],
)
def test_damaged_weights_are_named(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    file = folder / WEIGHTS
    file.write_bytes(damage(file.read_bytes()))
    refused(folder, WEIGHTS)


@pytest.fixture
def sharded(folder: Path) -> Path:
    """The checkpoint in two files with an index."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    parts = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / INDEX).write_text(json.dumps(index))
    return folder


def test_a_checkpoint_in_parts_is_the_same_model(sharded: Path, gpt2: LanguageModel) -> None:
    assert load_language_model(sharded).fingerprint == gpt2.fingerprint


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "not JSON"),
        ('{"weight_map": ', "not JSON"),
        ("[" * 3000, "not JSON"),
        ("[]", "JSON object"),
        ("{}", "weight_map"),
        ('{"weight_map": {}}', "weight_map"),
        ('{"weight_map": ["one.safetensors"]}', "weight_map"),
        ('{"weight_map": {"a": 3}}', "weight_map"),
        ('{"weight_map": {"a": "three.safetensors"}}', "three.safetensors, which is missing"),
        ('{"weight_map": {"a": "../one.safetensors"}}', "not a file of the folder"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "not a file of the folder"),
        ('{"weight_map": {"a": "one\\u0000.safetensors"}}', "not a file of the folder"),
    ],
)
def test_a_damaged_index_is_named(sharded: Path, content: str, words: str) -> None:
    (sharded / INDEX).write_text(content)
    refused(sharded, INDEX, words)


# Configuration.


@pytest.mark.parametrize("content", ["", "not json", "[]", "3", "{", "[" * 3000, '{"n_layer": ' + "9" * 5000 + "}"])
def test_a_configuration_that_is_no_json_object_is_named(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    refused(folder, "config.json")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_layer", -1),
        ("n_layer", 0),
        ("n_layer", 10**9),
        ("n_layer", "four"),
        ("n_layer", None),
        ("n_embd", -32),
        ("n_embd", 0),
        ("n_embd", 2**40),
        ("vocab_size", -5),
        ("vocab_size", 10**12),
        ("n_inner", 10**12),
        ("n_positions", 10**13),
        ("n_head", 0),
        ("n_head", -4),
        ("n_embd", [32]),
        ("activation_function", "nonsense"),
        ("model_type", "nonsense"),
        ("model_type", 3),
    ],
)
def test_an_absurd_configuration_is_refused_before_memory_is_taken(folder: Path, field: str, value: object) -> None:
    change_json(folder / "config.json", **{field: value})
    refused(folder, "model")


def test_missing_weights_of_absurd_size_are_not_made(folder: Path) -> None:
    tensors = {name: tensor for name, tensor in load_file(folder / WEIGHTS).items() if "wpe" not in name}
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    change_json(folder / "config.json", n_positions=10**13)
    refused(folder, "GB are free")


# Tokenizer.


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model": {"type": "BPE"}}', "[" * 3000, "\x00\x01"])
def test_a_damaged_tokenizer_is_a_model_error(folder: Path, content: str) -> None:
    (folder / "tokenizer.json").write_text(content)
    refused(folder, "cannot load the model")


@pytest.mark.parametrize(
    "content", ["{", "[]", "3", '{"tokenizer_class": 3}', '{"tokenizer_class": "Nonsense", "eos_token": 3}']
)
def test_a_damaged_tokenizer_configuration_is_a_model_error(folder: Path, content: str) -> None:
    (folder / "tokenizer_config.json").write_text(content)
    refused(folder, "cannot load the model")


def test_a_tokenizer_of_another_model_is_refused(folder: Path) -> None:
    file = folder / "tokenizer.json"
    raw = json.loads(file.read_text())
    raw["model"]["vocab"]["zzz"] = 5000
    file.write_text(json.dumps(raw))
    refused(folder, "zzz", "5000", "384 rows")


def test_a_token_without_an_embedding_is_refused_where_a_text_holds_it(
    folder: Path, checkpoint: Callable[[str], Path]
) -> None:
    language_model = load_language_model(folder)
    language_model.tokenizer.add_special_tokens({"additional_special_tokens": ["<|beyond|>"]})
    text = TextEncoder(language_model.tokenizer, 512, embeddings=384)
    assert text.encode_prompt("Lena was born in").ids
    with pytest.raises(DataError, match=r"<\|beyond\|>.* 384 rows"):
        text.encode_prompt("Lena <|beyond|>")


def test_padding_without_an_embedding_is_not_used(folder: Path) -> None:
    language_model = load_language_model(folder)
    language_model.tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    assert language_model.tokenizer.pad_token_id >= 384
    assert language_model.text.pad_id < 384


# Where it is put, and what it is.


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"device": "xyz"}, "'xyz'"),
        ({"device": "cuda:x"}, "'cuda:x'"),
        ({"device": "meta"}, "'meta'"),
        ({"device_map": "xyz"}, "'xyz'"),
        ({"device_map": {"nowhere": "cpu"}}, "nowhere"),
        ({"device_map": {"": "xyz"}}, "'xyz'"),
        ({"device_map": {"": None}}, "None"),
        ({"device_map": {"": True}}, "True"),
        ({"dtype": "float8"}, "float8"),
    ],
)
def test_a_wrong_place_is_named(folder: Path, how: dict[str, Any], words: str) -> None:
    refused(folder, words, **how)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    "how", [{"device": "cuda"}, {"device": "cuda:1"}, {"device_map": {"": 0}}, {"device_map": "cuda"}]
)
def test_a_gpu_that_is_not_there_is_reported(folder: Path, how: dict[str, Any]) -> None:
    refused(folder, "no GPU here", **how)


def test_auto_without_a_gpu_is_the_cpu(folder: Path, gpt2: LanguageModel) -> None:
    for how in ({"device_map": "auto"}, {"device": "auto"}):
        assert load_language_model(folder, **how).fingerprint == gpt2.fingerprint  # type: ignore[arg-type]


def test_an_offloaded_embedding_runs_on_its_hooks_device(
    checkpoint: Callable[[str], Path], gpt2: LanguageModel
) -> None:
    placed = {"transformer.wte": "disk", "lm_head": "disk", "transformer.wpe": "cpu", "transformer.h": "cpu"}
    found = load_language_model(checkpoint("gpt2"), device_map={**placed, "transformer.ln_f": "cpu"})
    assert next(found.model.parameters()).is_meta
    assert found.device == torch.device("cpu")
    assert found.fingerprint == gpt2.fingerprint


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 99 bytes")])
def test_too_little_memory_is_a_model_error(folder: Path, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr("instructedit.models.checkpoint.AutoModelForCausalLM.from_pretrained", full)
    refused(folder, "out of memory", "bfloat16")


@pytest.mark.parametrize("source", ["", "a\0b", "a" * 5000, "nowhere/at/all", 3, None])
def test_what_is_not_a_path_is_a_model_error(source: Any) -> None:
    refused(source)


def test_a_loaded_model_is_to_be_wrapped(own_gpt2: LanguageModel) -> None:
    refused(own_gpt2.model, "LanguageModel(model, tokenizer)", "GPT2LMHeadModel")
    wrapped = LanguageModel(own_gpt2.model, own_gpt2.tokenizer)
    assert wrapped.fingerprint == own_gpt2.fingerprint
    assert repr(wrapped) == "LanguageModel('a model in memory': GPT2LMHeadModel, 4 blocks, hidden size 32)"
    with pytest.raises(ModelError, match=r"not str and .*Tokenizer.*; to load a folder or hub id, use load_language"):
        LanguageModel("bundled", own_gpt2.tokenizer)  # type: ignore[arg-type]


def test_the_command_exits_with_the_message(folder: Path) -> None:
    (folder / "config.json").write_text("[]")
    result = CliRunner().invoke(app, ["doctor", "--model", str(folder)])
    assert isinstance(result.exception, ModelError) or result.exit_code == 2
