"""Several processes on one machine train as one does; when one dies, the others say so."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from instructedit.records import EditRecord
from instructedit.training.log import LOG
from instructedit.training.loop import CHECKPOINT

FILE = "own.jsonl"
#: Of a parameter, relative to its largest value: sums over processes are added up in another order.
TOLERANCE = 2e-4


def write_recipe(folder: Path, base: Path, steps: int, locality_average: str = "prompt", batch: int = 4) -> Path:
    path = folder / "recipe.yaml"
    content = {
        "base": str(base),
        "editor": {"blocks": 2, "rank": 8, "embedding_dim": 8, "step_size": 0.1},
        "tasks": [{"task": "counterfact", "files": [FILE]}, {"task": "rename", "files": [FILE]}],
        "encoder_warmup": {"steps": 3, "batch": 4},
        "objective": {"locality_average": locality_average},
        "optimisation": {
            "steps": steps,
            "batch": batch,
            "warmup_steps": 2,
            "validation_edits": 2,
            "checkpoint_every": 2,
        },
    }
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def start(recipe: Path, data: Path, out: Path, processes: int) -> list[subprocess.Popen[str]]:
    """``instructedit train`` in so many processes, which find each other as under ``accelerate launch``."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "instructedit.cli.app", "train", str(recipe), "--data", str(data)]
    started = []
    for rank in range(processes):
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        together = {key: str(value) for key, value in (places | meeting).items()} if processes > 1 else {}
        started.append(
            subprocess.Popen(
                [*command, "--out", str(out)],
                env={**os.environ, "OMP_NUM_THREADS": "1", **together},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return started


@pytest.fixture
def data(tmp_path: Path, records: list[EditRecord], write_jsonl: Callable[[Path, list[EditRecord]], Path]) -> Path:
    write_jsonl(tmp_path / FILE, records)
    return tmp_path


#: Averaged per token, the loss needs the other processes; per prompt it does not.
@pytest.mark.parametrize("average", [pytest.param("prompt", marks=pytest.mark.slow), "token"])
def test_two_processes_train_to_the_parameters_of_one(
    data: Path, checkpoint: Callable[[str], Path], average: str
) -> None:
    recipe = write_recipe(data, checkpoint("gpt2"), 6, average)
    for processes in (1, 2):
        for process in start(recipe, data, data / str(processes), processes):
            output, _ = process.communicate(timeout=300)
            assert process.returncode == 0, output
    one, two = (load_file(data / count / CHECKPOINT) for count in ("1", "2"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        if name.startswith("editor."):
            scale = tensor.abs().max().clamp_min(1e-3).item()
            torch.testing.assert_close(two[name], tensor, rtol=0, atol=TOLERANCE * scale, msg=name)
    losses = [
        [json.loads(line)["loss"] for line in (data / count / LOG).read_text().splitlines() if "loss" in line]
        for count in ("1", "2")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_a_batch_that_cannot_be_shared_is_refused(data: Path, checkpoint: Callable[[str], Path]) -> None:
    recipe = write_recipe(data, checkpoint("gpt2"), 2, batch=3)
    for process in start(recipe, data, data / "out", 2):
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 2
        assert "2 processes cannot share" in output


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_dead_process_ends_the_other_and_the_run_can_be_resumed(
    data: Path, checkpoint: Callable[[str], Path], victim: int
) -> None:
    recipe = write_recipe(data, checkpoint("gpt2"), 100_000)
    out = data / "out"
    processes = start(recipe, data, out, 2)
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and not (out.exists() and _steps(out) > 6):
        time.sleep(0.1)
    processes[victim].send_signal(signal.SIGKILL)
    output, _ = processes[1 - victim].communicate(timeout=120)
    assert processes[1 - victim].returncode == 2, output
    assert "another process of this training" in output
    processes[victim].communicate()

    done = _steps(out)
    again = write_recipe(data, checkpoint("gpt2"), 100_000)
    resumed = start(again, data, out, 2)
    while time.monotonic() < deadline and _steps(out) <= done + 2:
        time.sleep(0.1)
    for process in resumed:
        process.kill()
        process.communicate()
    assert _steps(out) > done + 2
    assert _trained_steps(out) == sorted(set(_trained_steps(out))), "no step is missing or logged twice"


def _trained_steps(out: Path) -> list[int]:
    try:
        lines = (out / LOG).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    entries = []
    for line in lines:
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break  # being written
    return [entry["step"] for entry in entries if entry["phase"] == "train"]


def _steps(out: Path) -> int:
    return len(_trained_steps(out))
