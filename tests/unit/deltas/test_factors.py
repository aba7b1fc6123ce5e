"""A matrix's change, dense or as a product of two factors: both give what the written-out matrix gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from instructedit.deltas.delta import Delta, DeltaBatch, DeltaMetadata
from instructedit.deltas.factors import Dense, Factor, LowRank
from instructedit.deltas.saving import FORMAT, load_delta, save_delta
from instructedit.errors import DeltaError
from instructedit.models.language_model import LanguageModel
from instructedit.models.text import pad
from instructedit.storage.tensors import pack

INPUTS, OUTPUTS = 7, 5
METADATA = DeltaMetadata(base="0123456789abcdef")
kinds = st.sampled_from(["low rank", "dense"])
seeds = st.integers(0, 10**6)


def factor(kind: str, seed: int, inputs: int = INPUTS, outputs: int = OUTPUTS) -> Factor:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(inputs, 3, generator=generator), torch.randn(3, outputs, generator=generator)
    return LowRank(a, b) if kind == "low rank" else Dense(torch.randn(inputs, outputs, generator=generator))


def stack(factors: list[Factor]) -> Factor:
    names = factors[0].tensors
    return type(factors[0])(**{name: torch.stack([one.tensors[name] for one in factors]) for name in names})


@given(kind=kinds, seed=seeds)
def test_what_a_factor_does_is_what_its_matrix_does(kind: str, seed: int) -> None:
    change = factor(kind, seed)
    matrix, x = change.dense(), torch.randn(4, INPUTS)
    assert change.shape == matrix.shape == (INPUTS, OUTPUTS)
    assert torch.linalg.matrix_rank(matrix) <= change.rank
    torch.testing.assert_close(change.apply(x), x @ matrix, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(change.square(), matrix.square().sum(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(change.scale(-1.5).dense(), -1.5 * matrix, rtol=1e-4, atol=1e-4)


@given(first=kinds, second=kinds, seed=seeds)
def test_the_sum_of_any_two_factors_is_that_of_their_matrices(first: str, second: str, seed: int) -> None:
    one, other = factor(first, seed), factor(second, seed + 1)
    total = one + other
    torch.testing.assert_close(total.dense(), one.dense() + other.dense(), rtol=1e-4, atol=1e-4)
    assert isinstance(total, LowRank) == (first == second == "low rank")


@given(kind=kinds, seed=seeds, rank=st.integers(1, 6))
def test_compression_is_the_best_of_its_rank(kind: str, seed: int, rank: int) -> None:
    change = factor(kind, seed)
    small, lost, whole = change.compress(rank)
    singular = torch.linalg.svdvals(change.dense())
    assert small.rank <= rank
    assert lost == pytest.approx(float((change.dense() - small.dense()).square().sum()), rel=1e-3, abs=1e-3)
    assert lost == pytest.approx(float(singular[rank:].square().sum()), rel=1e-3, abs=1e-3)
    assert whole == pytest.approx(float(change.square()), rel=1e-3)


@given(kind=kinds, seed=seeds)
def test_a_stack_is_each_of_its_edits(kind: str, seed: int) -> None:
    single = [factor(kind, seed + number) for number in range(3)]
    stacked = stack(single)
    assert (stacked.edits, single[0].edits) == (3, None)
    torch.testing.assert_close(stacked.square(), torch.stack([one.square() for one in single]), rtol=1e-4, atol=1e-4)
    chosen = stacked.select(torch.tensor([2, 0]))
    for row, index in enumerate((2, 0)):
        assert torch.equal(chosen.select(row).dense(), single[index].dense())


@pytest.mark.parametrize("kind", ["low rank", "dense"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_seen(kind: str, number: float) -> None:
    change = factor(kind, 0)
    assert change.finite()
    next(iter(change.tensors.values()))[0, 0] = number
    assert not change.finite()


def mixed_delta(language_model: LanguageModel, seed: int = 0) -> Delta:
    """A dense change of one matrix and a low-rank change of another."""
    matrices = language_model.structure.last_mlps(1)
    factors = {
        matrix.name: factor(kind, seed, matrix.inputs, matrix.outputs).scale(0.1)
        for matrix, kind in zip(matrices, ("dense", "low rank"), strict=True)
    }
    return Delta(factors, METADATA.model_copy(update={"base": language_model.fingerprint}))


def logits(language_model: LanguageModel) -> Tensor:
    batch = pad([language_model.text.encode_pair("Lena was born in", "Oston")], language_model.text.pad_id)
    with torch.no_grad():
        return language_model.split(0).full(batch)


def test_a_dense_delta_is_attached_merged_and_taken_back(own_gpt2: LanguageModel) -> None:
    delta, before = mixed_delta(own_gpt2), logits(own_gpt2)
    with delta.attached(own_gpt2):
        attached = logits(own_gpt2)
        with delta.scale(-1).attached(own_gpt2):
            torch.testing.assert_close(logits(own_gpt2), before, rtol=1e-3, atol=1e-3)
    assert torch.equal(logits(own_gpt2), before)
    assert (attached - before).abs().max() > 1e-2
    with delta.compress(OUTPUTS * 100).attached(own_gpt2):
        torch.testing.assert_close(logits(own_gpt2), attached, rtol=1e-3, atol=1e-3)
    delta.merge_into(own_gpt2)
    torch.testing.assert_close(logits(own_gpt2), attached, rtol=1e-4, atol=1e-4)


def test_rows_of_a_batch_carry_their_own_dense_edits(gpt2: LanguageModel) -> None:
    deltas = [mixed_delta(gpt2, seed) for seed in (1, 20)]
    batch = DeltaBatch({name: stack([delta.factors[name] for delta in deltas]) for name in deltas[0].factors})
    assert len(batch) == 2
    torch.testing.assert_close(batch.norms(), torch.tensor([delta.norm() for delta in deltas]))
    query = gpt2.text.encode_pair("Why", "not")
    with torch.no_grad(), batch.attached(gpt2, torch.tensor([1, 0])):
        rows = gpt2.split(0).full(pad([query] * 2, gpt2.text.pad_id)).view(2, -1)
    for row, index in enumerate((1, 0)):
        with torch.no_grad(), batch.select(index, deltas[index].metadata).attached(gpt2):
            alone = gpt2.split(0).full(pad([query], gpt2.text.pad_id)).flatten()
        torch.testing.assert_close(rows[row], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_gradients_of_dense_leaves_are_passed_on(dtype: torch.dtype | None) -> None:
    start = torch.randn(2, INPUTS, OUTPUTS, requires_grad=True)
    batch = DeltaBatch({"up": Dense(2 * start)})
    leaves = batch.leaves(dtype)
    assert leaves.factors["up"].dtype is (dtype or torch.float32)
    (leaves.factors["up"].tensors["change"] * 3).sum().backward()
    batch.backward(leaves)
    torch.testing.assert_close(start.grad, torch.full_like(start, 6))


def test_a_dense_factor_is_saved_and_read(tmp_path: Path) -> None:
    delta = Delta({"up": factor("dense", 0), "down": factor("low rank", 1)}, METADATA)
    save_delta(delta, tmp_path / "edit.safetensors")
    loaded = load_delta(tmp_path / "edit.safetensors")
    assert loaded.metadata == delta.metadata
    for name, change in delta.factors.items():
        assert type(loaded.factors[name]) is type(change)
        assert all(torch.equal(tensor, loaded.factors[name].tensors[part]) for part, tensor in change.tensors.items())


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        ({"up.a": (3, 2)}, "'up' has the factors a, expected a and b, or change"),
        ({"up.a": (3, 2), "up.b": (2, 4), "up.change": (3, 4)}, "has the factors a, b, change"),
        ({"up.a": (3, 2), "up.b": (3, 4)}, "cannot be multiplied"),
        ({"up.change": (3,)}, "expected matrices"),
        ({"up.change": (0, 3)}, "expected matrices"),
        ({"up.change": (3, 4), "up.scale": (1, 1)}, "not a factor: up.scale"),
    ],
)
def test_tensors_that_are_no_factors_are_refused(
    tmp_path: Path, tensors: dict[str, tuple[int, ...]], problem: str
) -> None:
    content = pack(
        {name: torch.ones(shape) for name, shape in tensors.items()},
        {"format": FORMAT, "metadata": METADATA.model_dump_json()},
    )
    (tmp_path / "edit.safetensors").write_bytes(content)
    with pytest.raises(DeltaError, match=problem):
        load_delta(tmp_path / "edit.safetensors")
