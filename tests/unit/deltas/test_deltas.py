"""Low-rank deltas: their algebra, attaching and detaching, merging, and their files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from conftest import FAMILIES
from instructedit.deltas.delta import Delta, DeltaBatch, DeltaMetadata
from instructedit.deltas.factors import LowRank
from instructedit.deltas.saving import FORMAT, load_delta, save_delta
from instructedit.editors.mend import Mend
from instructedit.errors import DataError, DeltaError, EditorError
from instructedit.models.fingerprint import weights_fingerprint
from instructedit.models.language_model import LanguageModel, load_language_model
from instructedit.models.text import pad
from instructedit.records import EditRequest

METADATA = DeltaMetadata(
    base="0123456789abcdef",
    source="tiny",
    editor="mend",
    requests=(EditRequest(prompt="Lena was born in", target="Oston", subject="Lena"),),
    instruction="Task: Edit\nDescription: Change – nur dies – 日本.",
    versions={"torch": "2"},
)


def low_rank(inputs: int, outputs: int, rank: int, seed: int = 0, scale: float = 0.3) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(inputs, rank, generator=generator) * scale
    return LowRank(a, torch.randn(rank, outputs, generator=generator) * scale)


def some_delta(seed: int = 0, base: str = METADATA.base) -> Delta:
    """Two matrices of unequal shape and rank, in no particular model."""
    factors = {"up": low_rank(12, 20, 3, seed), "down": low_rank(20, 12, 5, seed + 1)}
    return Delta(factors, METADATA.model_copy(update={"base": base}))


def delta_for(language_model: LanguageModel, seed: int = 0, rank: int = 2, scale: float = 0.3) -> Delta:
    """A random delta of the last two MLPs."""
    factors = {
        matrix.name: low_rank(matrix.inputs, matrix.outputs, rank, seed + number, scale)
        for number, matrix in enumerate(language_model.structure.last_mlps(2))
    }
    return Delta(factors, METADATA.model_copy(update={"base": language_model.fingerprint}))


def logits(language_model: LanguageModel) -> Tensor:
    queries = [
        language_model.text.encode_pair("Lena was born in", "Oston"),
        language_model.text.encode_pair("Why", "not?"),
    ]
    batch = pad(queries, language_model.text.pad_id)
    with torch.no_grad():
        return language_model.split(0).full(batch)


def dense(delta: Delta) -> dict[str, Tensor]:
    return {name: low.dense() for name, low in delta.factors.items()}


def norm(delta: Delta) -> float:
    """Frobenius norm of the whole change."""
    return float(sum(change.double().square().sum() for change in dense(delta).values()) ** 0.5)


def assert_same(one: Delta, other: Delta) -> None:
    assert one.metadata == other.metadata
    assert one.factors.keys() == other.factors.keys()
    for name, low in one.factors.items():
        assert low.a.dtype == other.factors[name].a.dtype
        assert torch.equal(low.a, other.factors[name].a)
        assert torch.equal(low.b, other.factors[name].b)


def test_sum_does_both() -> None:
    one, other = some_delta(0), some_delta(7)
    total = one + other
    for name, change in dense(total).items():
        torch.testing.assert_close(change, dense(one)[name] + dense(other)[name])
    assert total.factors["up"].rank == 6
    assert total.metadata.requests == METADATA.requests * 2
    assert total.metadata.instruction == METADATA.instruction


def test_sum_takes_matrices_that_only_one_has() -> None:
    one = Delta({"up": low_rank(3, 4, 1)}, METADATA)
    other = Delta({"down": low_rank(4, 3, 1)}, METADATA.model_copy(update={"editor": "own", "instruction": "x"}))
    total = one + other
    assert list(total.factors) == ["up", "down"]
    assert total.metadata.editor == "mend+own"
    assert total.metadata.instruction is None
    assert list(one.factors) == ["up"]


def test_sum_for_different_models_is_refused() -> None:
    with pytest.raises(DeltaError, match="different base models \\(0123456789abcdef and fedcba\\)"):
        some_delta() + some_delta(base="fedcba")


@pytest.mark.parametrize("factor", [-1.0, 0.0, 0.5, 3.0])
def test_scaling_scales_the_change(factor: float) -> None:
    delta = some_delta()
    before = dense(delta)
    for name, change in dense(delta.scale(factor)).items():
        torch.testing.assert_close(change, factor * before[name])


def test_minus_one_takes_an_edit_back() -> None:
    delta = some_delta()
    assert all(change.abs().max() < 1e-6 for change in dense(delta + delta.scale(-1)).values())


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5, 50])
def test_compression_states_its_true_error(rank: int) -> None:
    delta = some_delta()
    small = delta.compress(rank)
    lost = sum((dense(delta)[name] - dense(small)[name]).square().sum() for name in delta.factors)
    whole = sum(change.square().sum() for change in dense(delta).values())
    assert small.metadata.compression_error == pytest.approx(float((lost / whole).sqrt()), abs=1e-5)
    assert (small.metadata.compression_error < 1e-5) == (rank >= 5)
    assert all(low.rank <= rank for low in small.factors.values())


def test_compression_is_the_best_one() -> None:
    delta = Delta({"up": low_rank(12, 20, 6)}, METADATA)
    singular = torch.linalg.svdvals(dense(delta)["up"])
    best = float((singular[2:].square().sum() / singular.square().sum()).sqrt())
    assert delta.compress(2).metadata.compression_error == pytest.approx(best, abs=1e-5)


def test_compression_of_nothing_loses_nothing() -> None:
    empty = Delta({"up": LowRank(torch.zeros(4, 2), torch.zeros(2, 4))}, METADATA)
    assert empty.compress(1).metadata.compression_error == 0


def test_compression_to_no_rank_is_refused() -> None:
    with pytest.raises(DeltaError, match="rank 0"):
        some_delta().compress(0)


@given(seed=st.integers(0, 10**6), ranks=st.tuples(st.integers(1, 6), st.integers(1, 6)), scale=st.floats(-2, 2))
def test_a_sum_states_a_bound_of_its_compression_error(seed: int, ranks: tuple[int, int], scale: float) -> None:
    exact = [some_delta(seed), some_delta(seed + 7).scale(scale or 1.0)]
    small = [delta.compress(rank) for delta, rank in zip(exact, ranks, strict=True)]
    wanted, got = exact[0] + exact[1], small[0] + small[1]
    difference = [dense(wanted)[name].double() - dense(got)[name].double() for name in wanted.factors]
    true = float(sum(part.square().sum() for part in difference) ** 0.5) / norm(wanted)
    stated = got.metadata.compression_error
    assert stated is None or true <= stated + 1e-4


def test_a_sum_with_one_compressed_part_states_an_error() -> None:
    one, other = some_delta(0).compress(2), some_delta(7)
    assert one.metadata.compression_error
    forth, back = (one + other).metadata.compression_error, (other + one).metadata.compression_error
    assert forth == pytest.approx(back)
    assert forth is not None
    assert forth > 0
    assert (other + other).metadata.compression_error == 0
    assert (one + one.scale(-1)).metadata.compression_error is None, "of nothing that is left no error can be stated"


@pytest.mark.parametrize("ranks", [(4, 2), (2, 1), (3, 3)])
def test_compressing_twice_states_a_bound_of_both(ranks: tuple[int, int]) -> None:
    delta = some_delta()
    twice = delta.compress(ranks[0]).compress(ranks[1])
    lost = sum((dense(delta)[name] - dense(twice)[name]).square().sum() for name in delta.factors)
    assert twice.metadata.compression_error is not None
    assert float(lost**0.5) / norm(delta) <= twice.metadata.compression_error + 1e-5


def test_norm_is_that_of_the_dense_change() -> None:
    assert some_delta().norm() == pytest.approx(norm(some_delta()), rel=1e-5)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(own_gpt2: LanguageModel, number: float) -> None:
    delta = delta_for(own_gpt2)
    name = list(delta.factors)[-1]
    delta.factors[name].b[0, 0] = number
    before = logits(own_gpt2)
    for use in (delta.check, delta.merge_into, lambda model: delta.attached(model).__enter__()):
        with pytest.raises(DeltaError, match=f"{name} contains? NaN or infinity"):
            use(own_gpt2)
    with pytest.raises(DeltaError, match=f"{name} contains? NaN or infinity"):
        delta.compress(1)
    assert torch.equal(logits(own_gpt2), before)


def test_a_delta_is_shown_in_a_line(gpt2: LanguageModel) -> None:
    shown = repr(delta_for(gpt2))
    assert len(shown) < 200
    assert "\n" not in shown
    assert "4 modules, rank 2" in shown
    assert gpt2.fingerprint in shown
    assert "rank 3 to 5" in repr(some_delta())


def test_factors_are_moved_once_and_not_in_every_call(gpt2: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A delta on the CPU of a model on a GPU; here the move is a copy that says how often it was made."""
    delta, moved = delta_for(gpt2), []
    factors = {id(tensor) for low in delta.factors.values() for tensor in (low.a, low.b)}
    original = Tensor.to

    def counted(self: Tensor, *args: object, **kwargs: object) -> Tensor:
        if id(self) in factors:
            moved.append(self)
        return original(self, *args, **kwargs)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(Tensor, "to", counted)
    with delta.attached(gpt2):
        at_first = len(moved)
        for _ in range(3):
            logits(gpt2)
        assert len(moved) == at_first == len(factors)


@given(
    seed=st.integers(0, 10**6),
    rank=st.integers(1, 5),
    scale=st.floats(-50, 50, allow_nan=False).filter(bool),
    matrices=st.sets(st.integers(0, 3), min_size=1),
)
def test_attaching_and_detaching_leaves_the_model_bit_by_bit(
    gpt2: LanguageModel, seed: int, rank: int, scale: float, matrices: set[int]
) -> None:
    whole = delta_for(gpt2, seed, rank, scale)
    names = list(whole.factors)
    delta = Delta({names[number]: whole.factors[names[number]] for number in matrices}, whole.metadata)
    before = logits(gpt2)
    with delta.attached(gpt2):
        attached = logits(gpt2)
        with delta.scale(-1).attached(gpt2):
            torch.testing.assert_close(logits(gpt2), before, rtol=1e-3, atol=1e-2 * max(1.0, scale**2))
        assert torch.equal(logits(gpt2), attached)
    assert torch.equal(logits(gpt2), before)
    if abs(scale) > 0.1:
        assert not torch.equal(attached, before)


def test_an_error_inside_detaches_too(gpt2: LanguageModel) -> None:
    before = logits(gpt2)
    with pytest.raises(RuntimeError, match="inside"), delta_for(gpt2).attached(gpt2):
        raise RuntimeError("inside")
    assert torch.equal(logits(gpt2), before)


@pytest.mark.parametrize(
    ("name", "square"), [("gpt2", "transformer.h.3.attn.c_proj"), ("llama", "model.layers.3.self_attn.o_proj")]
)
def test_merging_is_attaching_for_good(
    name: str, square: str, checkpoint: Callable[[str], Path], tiny: Callable[[str], LanguageModel]
) -> None:
    own = load_language_model(checkpoint(name))
    delta = delta_for(own)
    delta = Delta({**delta.factors, square: low_rank(32, 32, 2, seed=9)}, delta.metadata)
    with delta.attached(own):
        attached = logits(own)
    delta.merge_into(own)
    torch.testing.assert_close(logits(own), attached, rtol=1e-4, atol=1e-4)
    assert (attached - logits(tiny(name))).abs().max() > 1e-2


def test_a_merged_model_is_no_base_any_more(own_gpt2: LanguageModel, new_editor: Callable[..., Mend]) -> None:
    delta = delta_for(own_gpt2)
    request = EditRequest(prompt="Lena was born in", target="Oston")
    delta.merge_into(own_gpt2)
    merged = logits(own_gpt2)
    for use in (delta.check, delta.merge_into, lambda model: delta.attached(model).__enter__()):
        with pytest.raises(DeltaError, match="hold a merged delta"):
            use(own_gpt2)
    with pytest.raises(EditorError, match="hold a merged delta"):
        new_editor(own_gpt2, name="mend").edit(own_gpt2, [request], [None])
    assert torch.equal(logits(own_gpt2), merged)
    anew = LanguageModel(own_gpt2.model, own_gpt2.tokenizer, "merged")
    assert anew.fingerprint != delta.metadata.base
    assert new_editor(anew, name="mend").edit(anew, [request], [None]).factors
    with pytest.raises(DeltaError, match="not for"):
        delta.check(anew)


def test_nothing_is_merged_while_a_delta_is_attached(own_gpt2: LanguageModel) -> None:
    delta, before = delta_for(own_gpt2), logits(own_gpt2)
    with delta.attached(own_gpt2), pytest.raises(DeltaError, match="is attached"):
        delta.merge_into(own_gpt2)
    assert torch.equal(logits(own_gpt2), before)


def test_rows_of_a_batch_carry_their_own_edits(gpt2: LanguageModel) -> None:
    deltas = [delta_for(gpt2, seed, scale=0.5) for seed in (1, 20)]
    names = deltas[0].factors
    stacked = DeltaBatch(
        {
            name: LowRank(
                torch.stack([d.factors[name].a for d in deltas]), torch.stack([d.factors[name].b for d in deltas])
            )
            for name in names
        },
        {name: torch.full((2,), 2) for name in names},
    )
    query = gpt2.text.encode_pair("Why", "not")
    batch = pad([query] * 3, gpt2.text.pad_id)
    with torch.no_grad(), stacked.attached(gpt2, torch.tensor([1, 0, 1])):
        rows = gpt2.split(0).full(batch).view(3, len(query.ids) - query.target_start, -1)
    for row, index in enumerate((1, 0, 1)):
        single = stacked.select(index, METADATA.model_copy(update={"base": gpt2.fingerprint}))
        assert_same(single, Delta(deltas[index].factors, single.metadata))
        with torch.no_grad(), single.attached(gpt2):
            expected = gpt2.split(0).full(pad([query], gpt2.text.pad_id))
        torch.testing.assert_close(rows[row], expected, rtol=1e-4, atol=1e-4)


def test_selecting_leaves_unused_ranks_out() -> None:
    a, b = torch.randn(2, 4, 3), torch.randn(2, 3, 5)
    a[0, :, 2], b[0, 2] = 0, 0
    single = DeltaBatch({"up": LowRank(a, b)}, {"up": torch.tensor([2, 3])}).select(0, METADATA)
    assert single.factors["up"].rank == 2
    torch.testing.assert_close(single.factors["up"].dense(), a[0] @ b[0])


@pytest.mark.parametrize(
    "use",
    [Delta.check, lambda delta, model: delta.attached(model).__enter__(), Delta.merge_into],
    ids=["check", "attach", "merge"],
)
def test_delta_for_another_model_is_refused(
    own_gpt2: LanguageModel, use: Callable[[Delta, LanguageModel], object]
) -> None:
    before = logits(own_gpt2)
    foreign = Delta(delta_for(own_gpt2).factors, METADATA)
    with pytest.raises(DeltaError, match=f"{METADATA.base} \\(tiny\\), not for {own_gpt2.fingerprint}"):
        use(foreign, own_gpt2)
    assert torch.equal(logits(own_gpt2), before)


@pytest.mark.parametrize(
    "change",
    [
        lambda low: {"transformer.h.9.mlp.c_fc": low},
        lambda low: {"transformer.h.3.ln_1": low},
        lambda low: {"transformer.h.3.mlp.c_fc": LowRank(low.a[:-1], low.b)},
        lambda low: {"transformer.h.3.mlp.c_fc": LowRank(low.a, low.b[:, :-1])},
    ],
)
def test_delta_that_does_not_fit_the_model_is_refused(
    gpt2: LanguageModel, change: Callable[[LowRank], dict[str, LowRank]]
) -> None:
    delta = delta_for(gpt2)
    with pytest.raises(DeltaError, match=r"does not fit the model.* transformer\.h\."):
        Delta(change(delta.factors["transformer.h.3.mlp.c_fc"]), delta.metadata).check(gpt2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_file_gives_back_what_was_saved(tmp_path: Path, dtype: torch.dtype) -> None:
    delta = some_delta()
    delta = Delta({n: LowRank(low.a.to(dtype), low.b.to(dtype)) for n, low in delta.factors.items()}, delta.metadata)
    save_delta(delta, tmp_path / "new" / "edit.safetensors")
    assert_same(load_delta(tmp_path / "new" / "edit.safetensors"), delta)


def test_file_of_compressed_delta_keeps_the_error(tmp_path: Path) -> None:
    small = some_delta().compress(1)
    save_delta(small, tmp_path / "edit.safetensors")
    assert load_delta(tmp_path / "edit.safetensors").metadata.compression_error == small.metadata.compression_error > 0


@pytest.mark.parametrize("kept", [0, 4, 60, -4])
def test_truncated_file_is_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "edit.safetensors"
    save_delta(some_delta(), path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DeltaError, match=r"edit.safetensors: cannot be read as a delta"):
        load_delta(path)


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.safetensors", tmp_path):
        with pytest.raises(DeltaError, match="cannot be read as a delta"):
            load_delta(path)


@pytest.mark.parametrize(
    ("tensors", "header", "problem"),
    [
        ({"up.a": 1, "up.b": 1}, {}, "no format in its header"),
        ({"up.a": 1, "up.b": 1}, {"format": "instructedit-editor/1"}, "is not a delta \\(instructedit-editor/1\\)"),
        ({"up.a": 1, "up.b": 1}, {"format": FORMAT}, "damaged"),
        ({"up.a": 1, "up.b": 1}, {"format": FORMAT, "metadata": "{"}, "damaged"),
        ({"up.a": 1, "up.b": 1}, {"format": FORMAT, "metadata": "{}"}, "damaged"),
        ({"up.a": 1}, {"format": FORMAT, "metadata": '{"base": "0"}'}, "damaged"),
    ],
)
def test_file_with_other_content_is_refused(
    tmp_path: Path, tensors: dict[str, int], header: dict[str, str], problem: str
) -> None:
    save_file({name: torch.ones(size, size) for name, size in tensors.items()}, tmp_path / "edit.safetensors", header)
    with pytest.raises(DeltaError, match=problem):
        load_delta(tmp_path / "edit.safetensors")


@pytest.mark.parametrize("step", ["replace", "fsync"])
def test_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(DataError, match=r"edit\.safetensors: cannot be written: No space left on device"):
        save_delta(some_delta(), tmp_path / "edit.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_failed_write_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "edit.safetensors"
    save_delta(some_delta(), path)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DataError):
        save_delta(some_delta(5), path)
    assert_same(load_delta(path), some_delta())


def test_folder_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot be written"):
        save_delta(some_delta(), tmp_path / "file" / "edit.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_fingerprint_is_that_of_the_bfloat16_copy(gpt2: LanguageModel, checkpoint: Callable[[str], Path]) -> None:
    assert load_language_model(checkpoint("gpt2"), dtype="bfloat16").fingerprint == gpt2.fingerprint
    assert len(gpt2.fingerprint) == 16


def test_fingerprint_is_that_of_the_float16_copy(family: str, tmp_path: Path, own_gpt2: LanguageModel) -> None:
    """Of numbers that float16 cannot hold, or rounds to others than bfloat16 does; in whatever they are stored."""
    tokenizer = own_gpt2.tokenizer
    for stored in (torch.float32, torch.bfloat16, torch.float16):
        model = FAMILIES[family]()
        with torch.no_grad():
            for number, parameter in enumerate(model.parameters()):
                generator = torch.Generator().manual_seed(number)
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise * 10.0 ** torch.randint(-7, 1, noise.shape, generator=generator))
        model.to(stored).save_pretrained(tmp_path / str(stored))
        tokenizer.save_pretrained(tmp_path / str(stored))
        found = {d: load_language_model(tmp_path / str(stored), dtype=d) for d in ("float32", "bfloat16", "float16")}
        assert len({one.fingerprint for one in found.values()}) == 1
        assert found["float16"].model.dtype is torch.float16


def test_fingerprint_differs_after_changing_any_weight(own_gpt2: LanguageModel) -> None:
    seen = {own_gpt2.fingerprint}
    parameters = list(own_gpt2.model.parameters())
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.5)
            seen.add(weights_fingerprint(own_gpt2.model))
    assert len(seen) == len(parameters) + 1


def test_fingerprints_of_families_differ(tiny: Callable[[str], LanguageModel]) -> None:
    assert len({tiny(name).fingerprint for name in ("gpt2", "llama", "qwen2", "phi3")}) == 4


def test_a_file_without_factors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.safetensors"
    save_delta(Delta({}, DeltaMetadata(base="x")), path)
    with pytest.raises(DeltaError, match="contains no factors"):
        load_delta(path)
