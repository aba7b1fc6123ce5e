"""Killed at any moment, a writer leaves the file before or the file after, whole."""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fuzz.figures import FULL, Figures
from fuzz.outcomes import Outcome, Verdict
from fuzz.writers import TEXTS, delta, write_for_ever
from instructedit.deltas.saving import load_delta, save_delta
from instructedit.errors import InstructEditError
from instructedit.storage.writing import locked

KILLS = 20 if FULL else 3


def _fault(folder: Path) -> str:
    """What is wrong with what was left; empty where nothing is."""
    try:
        found = load_delta(folder / "x.safetensors")
    except InstructEditError as error:
        return str(error)
    if not torch.equal(found.factors["x"].a, delta(int(found.metadata.base)).factors["x"].a):
        return "the delta is none of those that were written"
    text = folder / "x.txt"
    if text.exists() and text.read_bytes() not in TEXTS:
        return "the file is none of those that were written"
    with locked(folder):  # sweeps up what was temporary
        pass
    left = {path.name for path in folder.iterdir()} - {"x.safetensors", "x.txt"}
    return f"left behind: {left}" if left else ""


def test_a_killed_writer_leaves_whole_files(
    tmp_path: Path, record_property: Callable[[str, object], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = Figures("kills")
    # The server loads torch once, and forks; it finds the module to load only where the environment says.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["fuzz.writers"])
    rng = random.Random("kills")
    save_delta(delta(0), tmp_path / "x.safetensors")
    for number in range(KILLS):
        mine, theirs = processes.Pipe()
        writer = processes.Process(target=write_for_ever, args=(tmp_path, theirs), daemon=True)
        writer.start()
        assert mine.poll(60), "the writer did not start"
        time.sleep(rng.random() * 0.05)
        writer.kill()
        writer.join()
        fault = _fault(tmp_path)
        verdict = Verdict(Outcome.HALF_FILE, fault) if fault else Verdict(Outcome.SUCCESS)
        figures.add(verdict, f"kill {number}")
    figures.report(record_property)
    assert not figures.failures, "\n".join(figures.said())
