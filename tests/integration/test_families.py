"""Every supported family: structure, split forward, padding, edits that attach, detach and travel as files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest
import torch
from torch import Tensor
from transformers import (
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from instructedit.deltas.delta import DeltaBatch
from instructedit.deltas.saving import load_delta, save_delta
from instructedit.editors.mend import Mend
from instructedit.errors import ModelError
from instructedit.merging.combining import make_edit
from instructedit.models.fusion import fuse_activations_in_place
from instructedit.models.language_model import LanguageModel, load_language_model
from instructedit.models.text import TokenBatch, pad
from instructedit.records import EditRequest
from instructedit.tasks.loading import load_task

PAIRS = (
    ("Lena was born in", "Oston"),
    ("The old lighthouse stands in the harbour of the town called", "Maravel, near the river"),
    ("Why", "not?"),
)
INSTRUCTION = "Task: Edit\nDescription: Change this fact alone."
OTHER_INSTRUCTION = "Task: Edit\nDescription: Rename it everywhere, whoever has it."

CONDITIONINGS = (
    {"name": "mend", "contrast": True, "null_space": 2},
    {"conditioning": "none"},
    {"conditioning": "prefix"},
    {"conditioning": "hypernetwork"},
    {"conditioning": "both"},
    {"conditioning": "hypernetwork", "encoder": "base", "contrast": True, "null_space": 2},
)
conditioned = pytest.mark.parametrize(
    "config", CONDITIONINGS, ids=lambda config: "-".join(str(value) for value in config.values())
)


def batch_of(language_model: LanguageModel, pairs: Sequence[tuple[str, str]], side: str = "right") -> TokenBatch:
    return pad([language_model.text.encode_pair(*pair) for pair in pairs], language_model.text.pad_id, side)


def logits_of(language_model: LanguageModel, pairs: Sequence[tuple[str, str]] = PAIRS, side: str = "right") -> Tensor:
    with torch.no_grad():
        return language_model.split(0).full(batch_of(language_model, pairs, side))


def assert_same_deltas(one: DeltaBatch, other: DeltaBatch, rows: Sequence[int], other_rows: Sequence[int]) -> None:
    """Equal changes of weights, whatever the number of unused ranks."""
    assert one.factors.keys() == other.factors.keys()
    for name, low in one.factors.items():
        theirs = other.factors[name]
        for row, other_row in zip(rows, other_rows, strict=True):
            torch.testing.assert_close(
                low.a[row] @ low.b[row], theirs.a[other_row] @ theirs.b[other_row], rtol=1e-4, atol=1e-5
            )


def test_fused_activations_change_nothing(gpt2: LanguageModel, checkpoint: Callable[[str], Path]) -> None:
    plain = GPT2LMHeadModel.from_pretrained(checkpoint("gpt2"))
    assert fuse_activations_in_place(plain) == 4
    assert fuse_activations_in_place(plain) == 0
    original = GPT2LMHeadModel.from_pretrained(checkpoint("gpt2"))
    ids = torch.tensor([gpt2.text.encode_prompt(PAIRS[1][0]).ids])
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, original(ids).logits, rtol=1e-4, atol=1e-4)


def test_structure_is_found(any_model: LanguageModel) -> None:
    structure = any_model.structure
    modules = dict(any_model.model.named_modules())
    assert len(structure.blocks) == 4
    assert structure.hidden == 32
    for block, mlp in zip(structure.blocks, structure.mlps, strict=True):
        assert len(mlp) in (2, 3)
        *ups, down = sorted(mlp, key=lambda matrix: matrix.outputs == 32)
        assert down.outputs == 32
        assert all(up.inputs == 32 and up.outputs in (down.inputs, 2 * down.inputs) for up in ups)
        assert all(matrix.name.startswith(block + ".") for matrix in mlp)
    assert structure.final_norm is not None
    assert "norm" in structure.final_norm or "ln" in structure.final_norm
    assert modules[structure.head] is any_model.model.get_output_embeddings()


def test_mlp_is_not_mistaken_for_attention(any_model: LanguageModel) -> None:
    assert all(80 in {matrix.inputs for matrix in mlp} for mlp in any_model.structure.mlps)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("split_layer", [0, 2, 3])
def test_split_forward_is_the_whole_forward(any_model: LanguageModel, split_layer: int, side: str) -> None:
    batch = batch_of(any_model, PAIRS, side)
    split = any_model.split(split_layer)
    with torch.no_grad():
        halves = split.top(split.trunk(batch))
        torch.testing.assert_close(halves, split.full(batch), rtol=1e-6, atol=1e-6)
    assert halves.shape == (len(batch.labels), any_model.model.config.vocab_size)


def test_blocks_one_by_one_are_the_whole_forward(any_model: LanguageModel) -> None:
    batch = batch_of(any_model, PAIRS)
    state = any_model.split(1).trunk(batch)
    with torch.no_grad():
        for block in (1, 2):
            state = any_model.split(block).one_block(state)
        torch.testing.assert_close(any_model.split(3).top(state), any_model.split(0).full(batch), rtol=1e-6, atol=1e-6)


def test_whole_forward_is_the_models_own(any_model: LanguageModel) -> None:
    batch = batch_of(any_model, PAIRS)
    with torch.no_grad():
        own = any_model.model(input_ids=batch.ids, attention_mask=batch.mask.long()).logits
    torch.testing.assert_close(any_model.split(2).full(batch).detach(), own[batch.predicts], rtol=1e-5, atol=1e-5)


def test_padding_side_does_not_matter(any_model: LanguageModel) -> None:
    torch.testing.assert_close(logits_of(any_model, side="left"), logits_of(any_model), rtol=1e-4, atol=1e-5)


def test_rows_do_not_meet(any_model: LanguageModel) -> None:
    alone = torch.cat([logits_of(any_model, [pair]) for pair in PAIRS])
    torch.testing.assert_close(logits_of(any_model), alone, rtol=1e-4, atol=1e-5)


def test_prompt_changes_the_logits(any_model: LanguageModel) -> None:
    one, other = (logits_of(any_model, [(prompt, "so")]) for prompt in ("Lena was born in", "Otto was born in"))
    assert (one - other).abs().max() > 1e-2


def test_bfloat16_is_the_same_model_but_coarser(
    family: str, any_model: LanguageModel, checkpoint: Callable[[str], Path]
) -> None:
    coarse = load_language_model(checkpoint(family), dtype="bfloat16")
    assert coarse.model.dtype is torch.bfloat16
    assert coarse.fingerprint == any_model.fingerprint
    batch = batch_of(coarse, PAIRS)
    with torch.no_grad():
        split = coarse.split(2)
        halves = split.top(split.trunk(batch)).float()
    fine = logits_of(any_model).log_softmax(-1)
    torch.testing.assert_close(halves, split.full(batch).float(), rtol=1e-2, atol=1e-2)
    assert (halves.log_softmax(-1) - fine).abs().mean() < 0.15
    assert (halves.log_softmax(-1) - fine).abs().mean() < 0.2 * fine.std()


@conditioned
def test_edit_changes_its_own_row_alone_and_leaves_no_trace(
    any_model: LanguageModel,
    new_editor: Callable[..., Mend],
    requests_: list[EditRequest],
    config: dict[str, str],
) -> None:
    editor = new_editor(any_model, **config)
    deltas = editor.edit(any_model, requests_, [INSTRUCTION] * 3)
    assert len(deltas) == 3
    batch = batch_of(any_model, [PAIRS[0]] * 3)
    before = logits_of(any_model, [PAIRS[0]] * 3)
    with torch.no_grad(), deltas.attached(any_model, torch.tensor([0, 1, 2])):
        after = any_model.split(0).full(batch)
    per_row = after.view(3, -1, after.shape[-1])
    assert (after - before).abs().view(3, -1).max(1).values.min() > 1e-3
    assert (per_row[0] - per_row[1]).abs().max() > 1e-3
    for row in range(3):
        with torch.no_grad(), deltas.attached(any_model, torch.tensor([row])):
            alone = any_model.split(0).full(batch_of(any_model, [PAIRS[0]]))
        torch.testing.assert_close(per_row[row], alone, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits_of(any_model, [PAIRS[0]] * 3), before)


@conditioned
def test_an_edit_does_not_depend_on_its_company(
    any_model: LanguageModel,
    new_editor: Callable[..., Mend],
    requests_: list[EditRequest],
    config: dict[str, str],
) -> None:
    editor = new_editor(any_model, **config)
    texts: list[str | None] = [INSTRUCTION, OTHER_INSTRUCTION, None]
    together = editor.edit(any_model, requests_, texts)
    reverse = editor.edit(any_model, requests_[::-1], texts[::-1])
    assert_same_deltas(together, reverse, [0, 1, 2], [2, 1, 0])
    for row, (request, text) in enumerate(zip(requests_, texts, strict=True)):
        assert_same_deltas(together, editor.edit(any_model, [request], [text]), [row], [0])


@conditioned
def test_instruction_matters_exactly_where_it_is_read(
    any_model: LanguageModel,
    new_editor: Callable[..., Mend],
    requests_: list[EditRequest],
    config: dict[str, str],
) -> None:
    editor = new_editor(any_model, **config)
    request = requests_[0]
    one, other = (
        editor.edit(any_model, [request], [text]).factors[editor.matrices[-1].name]
        for text in (INSTRUCTION, OTHER_INSTRUCTION)
    )
    difference = (one.a @ one.b - other.a @ other.b).abs().max() if one.a.shape == other.a.shape else torch.tensor(1.0)
    reads = editor.reads_instruction
    assert (difference > 1e-6) == reads


def test_bfloat16_edit_is_near_the_exact_one(
    family: str,
    any_model: LanguageModel,
    checkpoint: Callable[[str], Path],
    new_editor: Callable[..., Mend],
    requests_: list[EditRequest],
) -> None:
    coarse = load_language_model(checkpoint(family), dtype="bfloat16")
    found = [new_editor(m, name="mend").edit(m, requests_, [None] * 3) for m in (any_model, coarse)]
    for name, low in found[0].factors.items():
        exact, near = (batch.factors[name].a @ batch.factors[name].b for batch in found)
        assert ((exact - near).norm() / exact.norm()) < 0.2, (name, low.rank)


def test_split_may_be_made_while_several_edits_are_attached(
    family: str, checkpoint: Callable[[str], Path], new_editor: Callable[..., Mend], requests_: list[EditRequest]
) -> None:
    fresh = load_language_model(checkpoint(family))
    deltas = new_editor(fresh, name="mend").edit(fresh, requests_, [None] * 3)
    batch = batch_of(fresh, PAIRS)
    with torch.no_grad(), deltas.attached(fresh, torch.arange(3)):
        split = fresh.split(1)  # the editor itself made another, below its own blocks
        torch.testing.assert_close(split.top(split.trunk(batch)), split.full(batch))


def test_delta_file_does_what_the_batch_row_did(
    any_model: LanguageModel, new_editor: Callable[..., Mend], requests_: list[EditRequest], tmp_path: Path
) -> None:
    editor = new_editor(any_model)
    task = load_task("counterfact")
    text = task.instructions.render(task.instructions.templates[0])
    rows = editor.edit(any_model, requests_, [text] * 3)
    save_delta(make_edit(editor, any_model, requests_[1:2], task), tmp_path / "one.safetensors")
    delta = load_delta(tmp_path / "one.safetensors")
    batch = batch_of(any_model, PAIRS)
    with torch.no_grad():
        with rows.attached(any_model, torch.ones(3, dtype=torch.long)):
            expected = any_model.split(0).full(batch)
        with delta.attached(any_model):
            found = any_model.split(0).full(batch)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found - logits_of(any_model)).abs().max() > 1e-3


_EXPERTS = {
    "vocab_size": 384,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MixtralForCausalLM(MixtralConfig(**_EXPERTS, num_local_experts=4)), "mixture of experts"),
        (
            lambda: Qwen2MoeForCausalLM(
                Qwen2MoeConfig(**_EXPERTS, num_experts=4, moe_intermediate_size=32, shared_expert_intermediate_size=64)
            ),
            "mixture of experts",
        ),
        (
            lambda: T5ForConditionalGeneration(
                T5Config(vocab_size=384, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
            ),
            "encoder-decoder",
        ),
    ],
    ids=["mixtral", "qwen2moe", "t5"],
)
def test_unsupported_models_are_refused_by_their_structure(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, make: Callable[[], torch.nn.Module], words: str
) -> None:
    make().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=words):
        load_language_model(tmp_path)


def test_pickled_weights_are_refused(tmp_path: Path, own_gpt2: LanguageModel) -> None:
    own_gpt2.model.config.save_pretrained(tmp_path)
    own_gpt2.tokenizer.save_pretrained(tmp_path)
    torch.save(own_gpt2.model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"safetensors"):
        load_language_model(tmp_path)


@pytest.mark.parametrize(
    "device_map",
    [
        None,
        pytest.param(
            "cpu",
        ),
    ],
)
def test_damaged_weights_are_a_model_error(tmp_path: Path, own_gpt2: LanguageModel, device_map: str | None) -> None:
    own_gpt2.model.save_pretrained(tmp_path)
    own_gpt2.tokenizer.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        load_language_model(tmp_path, device_map=device_map)


def test_missing_weights_are_a_model_error(tmp_path: Path, own_gpt2: LanguageModel) -> None:
    state = own_gpt2.model.state_dict()
    kept = {name: tensor for name, tensor in state.items() if ".h.2." not in name}
    own_gpt2.model.save_pretrained(tmp_path, state_dict=kept)
    own_gpt2.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"h\.2"):
        load_language_model(tmp_path)


def test_model_that_does_not_fit_into_memory_is_refused(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint("gpt2")
    size = (folder / "model.safetensors").stat().st_size
    memory = type("Memory", (), {"available": size * 3 // 4})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    with pytest.raises(ModelError, match=r"needs 0\.0 GB of memory as float32, but only 0\.0 GB are free"):
        load_language_model(folder)
    assert load_language_model(folder, dtype="bfloat16").structure.hidden == 32


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_a_model_error(tmp_path: Path, own_gpt2: LanguageModel, file: str) -> None:
    own_gpt2.model.save_pretrained(tmp_path)
    own_gpt2.tokenizer.save_pretrained(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(ModelError, match="cannot load the model"):
        load_language_model(tmp_path)
