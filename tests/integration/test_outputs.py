"""Outputs: one process a folder, told before any work when it cannot be written, and no process left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from instructedit.base_model.build import build_base
from instructedit.base_model.recipe import BuildRecipe
from instructedit.editors import key_statistics
from instructedit.editors.key_statistics import second_moment
from instructedit.errors import CheckpointError, DataError
from instructedit.experiments.cells import kept_cell
from instructedit.experiments.plan import load_experiment
from instructedit.experiments.run import run_all, run_one
from instructedit.models.language_model import LanguageModel
from instructedit.models.text import Encoded, TokenBatch, pad
from instructedit.models.trunk_cache import TrunkCache, TrunkKey
from instructedit.records import EditRecord
from instructedit.storage.cache import cache_folder
from instructedit.storage.writing import append_line, as_json
from instructedit.training.log import LOG
from instructedit.training.loop import train
from instructedit.training.recipe import Recipe, parse_recipe

FILE = "own.jsonl"
HOLDS = """
import sys, time
from pathlib import Path
from instructedit.storage.writing import locked, make_folder
with locked(make_folder(Path(sys.argv[1]))):
    print("locked", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def data(tmp_path: Path, records: list[EditRecord], write_jsonl: Callable[[Path, list[EditRecord]], Path]) -> Path:
    write_jsonl(tmp_path / FILE, records)
    return tmp_path


@pytest.fixture
def hold() -> Iterator[Callable[[Path], None]]:
    """Lets another process lock a folder until the test has ended."""
    started: list[subprocess.Popen[str]] = []

    def lock(folder: Path) -> None:
        other = subprocess.Popen([sys.executable, "-c", HOLDS, str(folder)], stdout=subprocess.PIPE, text=True)
        started.append(other)
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"

    yield lock
    for other in started:
        other.kill()
        other.wait()


def recipe(steps: int = 2) -> Recipe:
    return parse_recipe(
        {
            "editor": {"name": "mend", "blocks": 2, "rank": 4},
            "tasks": [{"task": "counterfact", "files": [FILE]}],
            "optimisation": {
                "steps": steps,
                "batch": 2,
                "warmup_steps": 1,
                "validation_edits": 2,
                "checkpoint_every": 1,
            },
        }
    )


def write_experiment(folder: Path, base: Path, steps: int = 2) -> Path:
    (folder / "mend.yaml").write_text(yaml.safe_dump(recipe(steps).model_dump(mode="json")))
    content = {
        "title": "Tiny",
        "base": str(base),
        "seeds": [0],
        "edits": 2,
        "tests": [{"task": "counterfact", "file": FILE, "metrics": ["reliability"]}],
        "editors": {"MEND": {"recipe": "mend.yaml"}},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_second_training_in_a_folder_is_refused(
    gpt2: LanguageModel, data: Path, hold: Callable[[Path], None]
) -> None:
    hold(data / "out")
    with pytest.raises(DataError, match="out: another process is writing here"):
        train(recipe(), gpt2, data / "out", data)
    assert list((data / "out").iterdir()) == []


def test_a_second_experiment_or_build_in_a_folder_is_refused(
    data: Path, checkpoint: Callable[[str], Path], hold: Callable[[Path], None]
) -> None:
    path = write_experiment(data, checkpoint("gpt2"))
    experiment = load_experiment(path)
    hold(data / "out")
    with pytest.raises(DataError, match="out: another process is writing here"):
        run_all(path, experiment, data / "out", data, 1)
    with pytest.raises(DataError, match="out: another process is writing here"):
        build_base(BuildRecipe(), None, data / "out")
    hold(data / "other" / "cells" / "mend-0")
    with pytest.raises(DataError, match="mend-0: another process is writing here"):
        run_one(experiment, "MEND", 0, data / "other", data)


def test_a_folder_that_cannot_be_made_is_reported_before_any_work(
    gpt2: LanguageModel, data: Path, checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_experiment(data, checkpoint("gpt2"))
    out = data / FILE / "out"
    monkeypatch.setattr("instructedit.training.loop.read_sources", lambda *args: pytest.fail("worked"))
    monkeypatch.setattr("instructedit.base_model.build.gather_facts", lambda *args: pytest.fail("worked"))
    monkeypatch.setattr("instructedit.experiments.run.load_language_model", lambda *args: pytest.fail("worked"))
    for work in (
        lambda: train(recipe(), gpt2, out, data),
        lambda: run_all(path, load_experiment(path), out, data, 1),
        lambda: run_one(load_experiment(path), "MEND", 0, out, data),
        lambda: build_base(BuildRecipe(), None, out),
    ):
        with pytest.raises(DataError, match="the folder cannot be created"):
            work()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\n", b"[1]\n", b'{"phase": "train"}\n'], ids=str)
def test_a_log_that_is_gone_or_damaged_is_reported(gpt2: LanguageModel, data: Path, content: bytes | None) -> None:
    train(recipe(), gpt2, data / "out", data)
    log = data / "out" / LOG
    log.unlink() if content is None else log.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"log\.jsonl.*delete the folder"):
        train(recipe(3).model_copy(update={"optimisation": recipe().optimisation}), gpt2, data / "out", data)


def test_a_disk_that_fills_up_in_training_is_reported(
    gpt2: LanguageModel, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "instructedit.training.log.append_line", lambda path, line, sync: append_line("/dev/full", line, sync=sync)
    )
    with pytest.raises(DataError, match="cannot be written: No space left"):
        train(recipe(), gpt2, data / "out", data)


PARENT = """
import sys
from pathlib import Path
from instructedit.experiments.plan import load_experiment
from instructedit.experiments.run import run_all
path, out, data = map(Path, sys.argv[1:])
run_all(path, load_experiment(path), out, data, 1)
"""


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(wanted: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if wanted():
            return True
        time.sleep(0.1)
    return wanted()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="processes are told apart by /proc")
def test_children_end_with_a_parent_that_is_killed(data: Path, checkpoint: Callable[[str], Path]) -> None:
    path = write_experiment(data, checkpoint("gpt2"), steps=1_000_000)
    log = data / "out" / "editors" / "mend-0" / LOG
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(path), str(data / "out"), str(data)])
    try:
        assert until(lambda: log.is_file() and log.stat().st_size > 0, 120)
        pids = [pid for thread in Path(f"/proc/{parent.pid}/task").iterdir() for pid in _children(thread)]
        [child] = set(pids)
        assert is_running(child)
    finally:
        parent.kill()
        parent.wait()
    assert until(lambda: not is_running(child), 20)


def _children(thread: Path) -> list[int]:
    return [int(pid) for pid in (thread / "children").read_text().split()]


def test_a_result_that_is_no_number_is_not_written(tmp_path: Path) -> None:
    assert as_json({"a": [1, 2.5, None]}) == '{"a": [1, 2.5, null]}'
    for value, place in (({"a": [1, float("nan")]}, "a.1"), ([{"b": float("inf")}], "0.b"), (float("nan"), "a number")):
        with pytest.raises(DataError, match=f"file x: is not written: {place} is NaN or infinite"):
            as_json(value, file="x")


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b'{"settings": "a"}', b'{"settings": "a", "records": 1}'])
def test_a_damaged_cell_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cell.json").write_bytes(content)
    assert kept_cell(tmp_path / "cell.json", "a") is None


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Statistics of ones instead of measured ones; what was asked for."""
    asked: list[str] = []

    def measure(
        language_model: LanguageModel, matrices: Sequence[str], sentences: int, seed: int
    ) -> dict[str, torch.Tensor]:
        asked.extend(matrices)
        return {matrix: torch.ones(80, 80) for matrix in matrices}

    monkeypatch.setattr(key_statistics, "_compute", measure)
    return asked


MATRIX = "transformer.h.2.mlp.c_proj"


def test_statistics_that_cannot_be_kept_cost_nothing(
    gpt2: LanguageModel,
    tmp_path: Path,
    measured: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("INSTRUCTEDIT_CACHE", str(tmp_path / "file" / "below"))
    assert second_moment(gpt2, MATRIX).shape == (80, 80)
    assert "statistics are not cached" in caplog.text
    assert measured == [MATRIX]


@pytest.mark.parametrize(
    "moment", [torch.ones(3, 3), torch.full((80, 80), float("nan")), torch.ones(80, 80, dtype=torch.float16)]
)
def test_statistics_of_something_else_are_made_again(
    gpt2: LanguageModel, tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch, moment: torch.Tensor
) -> None:
    monkeypatch.setenv("INSTRUCTEDIT_CACHE", str(tmp_path))
    second_moment(gpt2, MATRIX)
    second_moment(gpt2, MATRIX)
    assert measured == [MATRIX]
    (path,) = (tmp_path / "keys").iterdir()
    save_file({"moment": moment}, path)
    assert torch.equal(second_moment(gpt2, MATRIX), torch.ones(80, 80))
    assert measured == [MATRIX] * 2


def test_the_cache_has_a_place_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> Path:
        raise RuntimeError("no home")

    monkeypatch.delenv("INSTRUCTEDIT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", unknown)
    assert cache_folder().name == f"instructedit-{os.getuid()}"
    monkeypatch.setenv("XDG_CACHE_HOME", "/shared")
    assert cache_folder() == Path("/shared/instructedit")


def test_trunk_states_are_computed_though_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise DataError("cannot be written: No space left on device", file=path)

    monkeypatch.setattr("instructedit.models.trunk_cache.write_atomically", full)
    cache = TrunkCache(TrunkKey("0", 2, "float32"), memory=0, folder=tmp_path, disk=1000)

    def trunk(batch: TokenBatch) -> torch.Tensor:
        return batch.ids[..., None].float()

    for _ in range(3):
        assert cache.states(pad([Encoded((5, 6), 2)], 0), trunk)[0, :, 0].tolist() == [5.0, 6.0]
    assert caplog.text.count("no more trunk states are written") == 1
