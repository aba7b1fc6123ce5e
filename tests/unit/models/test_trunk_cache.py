"""The trunk cache: it gives what the trunk gives, keeps its limits, and deletes damaged and foreign files."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from instructedit.models.language_model import LanguageModel
from instructedit.models.text import Encoded, TokenBatch, pad
from instructedit.models.trunk_cache import TrunkCache, TrunkKey

KEY = TrunkKey("0123456789abcdef", 2, "float32")
WIDTH = 4
MEGABYTE = 1_000_000


class CountedTrunk:
    """A stand-in trunk: every token's state is its id; counts the rows that pass."""

    def __init__(self) -> None:
        self.rows = 0

    def __call__(self, batch: TokenBatch) -> Tensor:
        self.rows += len(batch)
        return batch.ids[..., None].float().expand(-1, -1, WIDTH)


def batch(*texts: tuple[int, ...], side: str = "right") -> TokenBatch:
    return pad([Encoded(text, len(text)) for text in texts], 0, side)


@pytest.mark.parametrize("side", ["right", "left"])
def test_known_rows_do_not_pass_the_trunk_again(side: str) -> None:
    trunk, cache = CountedTrunk(), TrunkCache(KEY, memory=MEGABYTE)
    cache.states(batch((5, 6, 7)), trunk)
    mixed = batch((8, 9), (5, 6, 7), (8, 9), side=side)
    states = cache.states(mixed, trunk)
    assert trunk.rows == 2, "one row at first, then only the distinct new one"
    torch.testing.assert_close(states[..., 0], mixed.ids.float() * mixed.mask, rtol=0, atol=0)
    assert (cache.hits, cache.misses) == (1, 3)


def test_memory_is_bounded_and_the_least_recent_goes_first() -> None:
    trunk, cache = CountedTrunk(), TrunkCache(KEY, memory=2 * WIDTH * 4)  # two states of one token
    for token in (1, 2, 1, 3):
        cache.states(batch((token,)), trunk)
    rows = trunk.rows
    cache.states(batch((1,), (3,)), trunk)
    assert trunk.rows == rows, "1 was used again before 3 came, so 2 was forgotten"
    cache.states(batch((2,)), trunk)
    assert trunk.rows == rows + 1


@pytest.mark.parametrize("on_disk", [False, True])
def test_states_stay_on_their_device_unless_they_go_to_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_disk: bool
) -> None:
    cache = TrunkCache(KEY, memory=MEGABYTE, folder=tmp_path if on_disk else None, disk=MEGABYTE)
    original, moved = Tensor.cpu, []

    def counted(self: Tensor, *args: object) -> Tensor:
        if self.is_floating_point():
            moved.append(self)
        return original(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Tensor, "cpu", counted)
    for _ in range(2):
        states = cache.states(batch((5, 6), (7,)), CountedTrunk())
    assert states[..., 0].tolist() == [[5.0, 6.0], [7.0, 0.0]]
    assert bool(moved) == on_disk


def test_the_folder_outlives_the_cache(tmp_path: Path) -> None:
    first = CountedTrunk()
    cache = TrunkCache(KEY, memory=0, folder=tmp_path, disk=MEGABYTE)
    cache.states(batch((5, 6), (7,)), first)
    second = CountedTrunk()
    again = TrunkCache(KEY, memory=0, folder=tmp_path, disk=MEGABYTE)
    states = again.states(batch((7,), (5, 6)), second)
    assert second.rows == 0
    assert again.hit_rate == 1.0
    assert states[1, :, 0].tolist() == [5.0, 6.0]


def test_disk_is_bounded(tmp_path: Path) -> None:
    cache = TrunkCache(KEY, memory=0, folder=tmp_path, disk=2000)
    for token in range(40):
        cache.states(batch((token, token + 1, token + 2)), CountedTrunk())
        assert 0 < sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors")) <= 2000


def state_file(folder: Path) -> Path:
    cache = TrunkCache(KEY, memory=0, folder=folder, disk=MEGABYTE)
    cache.states(batch((5, 6), (7,)), CountedTrunk())
    return next(path for path in folder.rglob("*.safetensors") if b"2,4" in path.read_bytes())


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_file_is_deleted_and_written_again(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = state_file(tmp_path)
    content = bytearray(path.read_bytes())
    if damage == "cut":
        del content[-8:]
    else:
        content[-1] ^= 1
    path.write_bytes(content)
    trunk = CountedTrunk()
    with caplog.at_level(logging.WARNING):
        cache = TrunkCache(KEY, memory=0, folder=tmp_path, disk=MEGABYTE)
        states = cache.states(batch((5, 6)), trunk)
    assert states[0, :, 0].tolist() == [5.0, 6.0]
    assert trunk.rows == 1
    assert "computed again" in caplog.text
    assert path.read_bytes() != bytes(content), "it is written again"
    assert TrunkCache(KEY, memory=0, folder=tmp_path, disk=MEGABYTE).states(batch((5, 6)), trunk) is not None
    assert trunk.rows == 1, "what was rebuilt is read"


def test_a_file_of_another_trunk_is_deleted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = state_file(tmp_path)
    other = TrunkKey("fedcba9876543210", 2, "float32")
    foreign = tmp_path / other.folder_name / path.name
    foreign.parent.mkdir()
    path.rename(foreign)
    trunk = CountedTrunk()
    with caplog.at_level(logging.WARNING):
        TrunkCache(other, memory=0, folder=tmp_path, disk=MEGABYTE).states(batch((5, 6)), trunk)
    assert trunk.rows == 1
    assert "another trunk" in caplog.text


def test_a_model_remembers_its_trunks(any_model: LanguageModel) -> None:
    texts = [any_model.text.encode_pair("Lena was born in", "Oston"), any_model.text.encode_pair("Why", "not?")]
    split = any_model.split(2)
    queries = pad(texts, any_model.text.pad_id)
    plain = split.trunk(queries).hidden
    with any_model.cache_trunk(2, memory=MEGABYTE) as cache:
        split.trunk(queries)
        remembered = split.trunk(pad(texts[::-1], any_model.text.pad_id, "left")).hidden
    assert cache.hit_rate == 0.5
    assert split.cache is None
    mask = queries.mask
    torch.testing.assert_close(remembered[1][-mask[0].sum() :], plain[0][mask[0]])
    torch.testing.assert_close(remembered[0][-mask[1].sum() :], plain[1][mask[1]])
