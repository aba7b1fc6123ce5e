"""Exported edits are the edit itself in the programs that load them: PEFT, transformers and llama.cpp."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from instructedit.cli.app import app
from instructedit.deltas.delta import Delta, DeltaMetadata
from instructedit.deltas.factors import Dense, LowRank
from instructedit.deltas.saving import save_delta
from instructedit.errors import DataError, DeltaError, ModelError
from instructedit.export.card import content_hash
from instructedit.export.gguf_files import export_gguf_adapter, merge_into_gguf
from instructedit.export.lora import RANKS, as_lora
from instructedit.export.merged import export_merged
from instructedit.export.peft_folder import export_peft
from instructedit.models.language_model import LanguageModel, load_language_model
from instructedit.records import EditRequest
from tiny_gguf import write_gguf

LINEAR = ["llama", "mistral", "qwen2", "gemma2"]
REQUEST = EditRequest(prompt="Lena was born in", target="Oston | the old", subject="Lena", task="counterfact")
IDS = torch.tensor([[5, 9, 17, 30, 41]])


def edit_of(model: LanguageModel, rank: int = 3, *endings: str) -> Delta:
    """Return a random delta of some matrices of the last two blocks, as the editors of attention make it."""
    chosen = endings or ("v_proj", "down_proj")
    last, before = model.structure.blocks[-1], model.structure.blocks[-2]
    generator = torch.Generator().manual_seed(3)
    factors = {}
    for name, module in model.model.named_modules():
        ending = name.rpartition(".")[2]
        # Only one of the blocks changes its MLP: the other one is to be filled up.
        if ending in chosen and (name.startswith(last) or (name.startswith(before) and ending != "down_proj")):
            weight = module.weight if isinstance(module, nn.Linear) else module.weight.mT
            outputs, inputs = weight.shape
            factors[name] = LowRank(
                torch.randn(inputs, rank, generator=generator), torch.randn(rank, outputs, generator=generator) * 0.1
            )
    metadata = DeltaMetadata(
        base=model.fingerprint, architecture=model.architecture, sketch=model.sketch, editor="mend",
        requests=(REQUEST,), instruction="Change this fact alone.",
    )  # fmt: skip
    return Delta(factors, metadata)


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    found: Tensor = model.eval()(input_ids=IDS).logits.float()
    return found


def edited(model: LanguageModel, delta: Delta) -> Tensor:
    with delta.attached(model):
        return logits(model.model)


@pytest.mark.parametrize("family", LINEAR)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_peft_computes_the_same(
    tiny: Callable[[str], LanguageModel], checkpoint: Callable[[str], Path], family: str, tmp_path: Path
) -> None:
    model = tiny(family)
    delta = edit_of(model)
    adapter = export_peft(delta, model, tmp_path / "lora", base_name=str(checkpoint(family)))
    base = AutoModelForCausalLM.from_pretrained(checkpoint(family), dtype=torch.float32)
    plain = logits(base)
    loaded = PeftModel.from_pretrained(base, str(tmp_path / "lora"))
    torch.testing.assert_close(logits(loaded), edited(model, delta), rtol=1e-4, atol=1e-4)
    assert (logits(loaded) - plain).abs().max() > 1e-2, "the edit changes something"
    assert adapter.rank == 8
    assert not adapter.warnings
    with loaded.disable_adapter():
        torch.testing.assert_close(logits(loaded), plain, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["gpt2", *LINEAR])
def test_a_merged_checkpoint_computes_the_same(
    tiny: Callable[[str], LanguageModel], family: str, tmp_path: Path
) -> None:
    model = tiny(family)
    delta = edit_of(model, 3, "v_proj", "down_proj", "c_proj")
    before = logits(model.model)
    export_merged(delta, model, tmp_path / "merged", base_name="the base")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    torch.testing.assert_close(logits(found), edited(model, delta), rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(model.model), before), "the model in memory is not changed"
    assert not list(tmp_path.glob(".*")), "no temporary folder is left"
    with pytest.raises(DataError, match="is not empty"):
        export_merged(delta, model, tmp_path / "merged", base_name="the base")


def test_the_config_is_what_servers_accept(tiny: Callable[[str], LanguageModel], tmp_path: Path) -> None:
    """The rules of vLLM and SGLang: one rank among theirs, alpha, plain endings, no patterns, no rsLoRA, no bias."""
    model = tiny("llama")
    delta = edit_of(model, 9)
    adapter = export_peft(delta, model, tmp_path, base_name="some/base")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == adapter.rank == 16
    assert config["r"] in RANKS
    assert config["target_modules"] == ["down_proj", "v_proj"]
    assert config["layers_to_transform"] == [2, 3]
    assert config["bias"] == "none"
    assert not any(config[name] for name in ("use_rslora", "use_dora", "modules_to_save"))
    assert not [key for key in config if "pattern" in key]
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as stored:
        shapes = {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
        filled = stored.get_tensor("base_model.model.model.layers.2.mlp.down_proj.lora_B.weight")
    assert not filled.any(), "a block that does not change this matrix has zeros"
    assert len(shapes) == 2 * 2 * 2, "A and B of both matrices of both blocks"
    assert all(16 in shape for shape in shapes.values())


def test_ranks_are_padded_and_high_ones_are_reported(tiny: Callable[[str], LanguageModel]) -> None:
    model = tiny("llama")
    assert [as_lora(edit_of(model, rank), model).rank for rank in (1, 8, 9, 16, 17)] == [8, 8, 16, 16, 32]
    [warning] = as_lora(edit_of(model, 17), model).warnings
    assert "--max-lora-rank 32" in warning
    with pytest.raises(DeltaError, match="has rank 600; servers load at most 512"):
        as_lora(edit_of(model, 600), model)


def test_a_dense_change_is_exported_at_its_rank(tiny: Callable[[str], LanguageModel]) -> None:
    model = tiny("llama")
    low = edit_of(model, 3, "v_proj")
    dense = Delta({name: Dense(factor.dense()) for name, factor in low.factors.items()}, low.metadata)
    adapter = as_lora(dense, model)
    for name, factor in low.factors.items():
        torch.testing.assert_close((adapter.b[name] @ adapter.a[name]).mT, factor.dense(), rtol=1e-4, atol=1e-4)


def test_transposed_layers_are_refused_with_a_way_out(gpt2: LanguageModel, tmp_path: Path) -> None:
    delta = edit_of(gpt2, 3, "c_proj")
    for write in (
        lambda: export_peft(delta, gpt2, tmp_path / "lora", base_name="base"),
        lambda: export_gguf_adapter(delta, gpt2, tmp_path / "lora.gguf"),
    ):
        with pytest.raises(DeltaError, match="use --format merged"):
            write()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "gemma2"])
def test_a_gguf_adapter_holds_the_factors(tiny: Callable[[str], LanguageModel], family: str, tmp_path: Path) -> None:
    model = tiny(family)
    delta = edit_of(model)
    path = tmp_path / "lora.gguf"
    adapter = export_gguf_adapter(delta, model, path)
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.type"] == "adapter"
    assert fields["adapter.type"] == "lora"
    assert fields["adapter.lora.alpha"] == adapter.rank == 8
    tensors = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    assert len(tensors) == 2 * len(delta.factors)
    names = {"v_proj": "attn_v", "down_proj": "ffn_down"}
    for module, factor in delta.factors.items():
        stem = f"blk.{model.structure.block_of(module)}.{names[module.rpartition('.')[2]]}.weight"
        change = tensors[f"{stem}.lora_b"] @ tensors[f"{stem}.lora_a"]
        torch.testing.assert_close(change.mT, factor.dense(), rtol=1e-4, atol=1e-4)


def test_reordered_matrices_are_refused(tiny: Callable[[str], LanguageModel], tmp_path: Path) -> None:
    model = tiny("llama")
    with pytest.raises(DeltaError, match="stores query and key matrices in another order"):
        export_gguf_adapter(edit_of(model, 3, "q_proj"), model, tmp_path / "lora.gguf")


def test_a_merged_gguf_file_computes_the_same(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    source = write_gguf(checkpoint("llama"), tmp_path / "base.gguf")
    before = source.read_bytes()
    model = load_language_model(str(source))
    delta = edit_of(model)
    merge_into_gguf(delta, model, source, tmp_path / "merged.gguf", kind="F32")
    found = load_language_model(str(tmp_path / "merged.gguf"))
    torch.testing.assert_close(logits(found.model), edited(model, delta), rtol=1e-4, atol=1e-4)
    assert found.text.encode_prompt(REQUEST.prompt).ids == model.text.encode_prompt(REQUEST.prompt).ids
    assert source.read_bytes() == before

    merge_into_gguf(delta, model, source, tmp_path / "half.gguf", kind="F16", others="F16")
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "half.gguf").tensors}
    assert {types["blk.3.attn_v.weight"], types["blk.0.ffn_up.weight"]} == {"F16"}
    assert types["output_norm.weight"] == "F32", "norms keep their type"

    with pytest.raises(DataError, match="rows of 80 weights cannot be written as Q8_0"):
        merge_into_gguf(delta, model, source, tmp_path / "odd.gguf", kind="Q8_0")
    assert not (tmp_path / "odd.gguf").exists()


def test_a_wrong_source_is_refused(
    tiny: Callable[[str], LanguageModel], checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    source = write_gguf(checkpoint("llama"), tmp_path / "base.gguf")
    other = tiny("qwen2")
    with pytest.raises(ModelError, match="holds the architecture llama, but the model is qwen2"):
        merge_into_gguf(edit_of(other), other, source, tmp_path / "merged.gguf")
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + b"\0" * 40)
    llama = tiny("llama")
    with pytest.raises(ModelError, match="cannot be read as GGUF"):
        merge_into_gguf(edit_of(llama), llama, broken, tmp_path / "merged.gguf")
    assert not (tmp_path / "merged.gguf").exists()


def test_the_card_states_the_edit_and_what_was_lost(tiny: Callable[[str], LanguageModel], tmp_path: Path) -> None:
    model = tiny("llama")
    delta = edit_of(model).compress(2)
    export_peft(delta, model, tmp_path, base_name="some/base")
    text = (tmp_path / "README.md").read_text()
    for part in (
        "base_model: some/base", "library_name: peft", content_hash(delta), model.fingerprint,
        "Change this fact alone.",
        "| Lena was born in | Oston \\| the old | Lena | counterfact |",
        f"{delta.metadata.compression_error:.4f}",
    ):  # fmt: skip
        assert part in text


def test_the_name_of_an_edit_is_its_content(tiny: Callable[[str], LanguageModel]) -> None:
    delta = edit_of(tiny("llama"))
    assert content_hash(delta) == content_hash(edit_of(tiny("llama")))
    assert content_hash(delta) != content_hash(delta.scale(2.0))


@pytest.mark.parametrize(
    ("options", "written"),
    [
        (["--format", "peft"], "lora/adapter_config.json"),
        (["--format", "gguf"], "lora"),
        (["--format", "merged"], "lora/model.safetensors"),
        (["--format", "merged-gguf", "--gguf", "base.gguf", "--type", "F16"], "lora"),
    ],
)
def test_the_command_writes_every_format(
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    written: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    source = write_gguf(checkpoint("llama"), tmp_path / "base.gguf")
    model = load_language_model(str(source))
    save_delta(edit_of(model), "one.safetensors")
    command = ["export", "one.safetensors", "--model", str(source), "--out", "lora", "--json", "-", *options]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["edits"] == 1
    assert result["format"] == options[1]
    assert (tmp_path / written).is_file()


def test_the_command_explains_what_does_not_go_together(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["export", "none.safetensors", "--gguf", "base.gguf"])
    assert isinstance(done.exception, DataError)
    assert "--gguf is needed for --format merged-gguf" in str(done.exception)
