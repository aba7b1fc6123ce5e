"""The number of CPU threads."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from instructedit import threads
from instructedit.cli.threads import prepare_computation, request_threads
from instructedit.threads import free_threads, sleep_while_waiting, usable_cores


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("cores", "load", "free"), [(8, 0.1, 8), (8, 3.2, 5), (8, 7.6, 1), (8, 30.0, 1), (1, 0.0, 1)])
def test_what_other_processes_leave_is_free(
    monkeypatch: pytest.MonkeyPatch, cores: int, load: float, free: int
) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: cores)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    assert free_threads() == free


def test_a_system_without_a_load_average_counts_as_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "getloadavg")
    assert free_threads() == usable_cores() >= 1


def test_a_command_uses_the_free_cores_and_says_so_if_some_are_busy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("instructedit.cli.threads.usable_cores", lambda: 4)
    for free, shown in ((3, "3 of 4 cores are free"), (4, "")):
        monkeypatch.setattr("instructedit.cli.threads.free_threads", lambda free=free: free)
        prepare_computation()
        assert torch.get_num_threads() == free
        printed = capsys.readouterr().err
        assert shown in printed
        assert bool(printed) == bool(shown)


def test_what_the_user_says_is_used(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr("instructedit.cli.threads.free_threads", lambda: pytest.fail("not asked"))
    prepare_computation()
    assert torch.get_num_threads() == 2
    request_threads(None)
    assert os.environ["OMP_NUM_THREADS"] == "2"
    request_threads(3)
    assert os.environ["OMP_NUM_THREADS"] == "3"
    monkeypatch.setenv("OMP_NUM_THREADS", "many")  # PyTorch's own affair
    prepare_computation()
    assert capsys.readouterr().err == ""


def test_threads_sleep_while_they_wait_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    sleep_while_waiting()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    sleep_while_waiting()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
