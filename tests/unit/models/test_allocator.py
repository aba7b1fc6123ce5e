"""Keeping and returning freed memory: done on glibc, and harmless elsewhere."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from instructedit.models import allocator


def test_glibc_takes_the_settings() -> None:
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("not glibc")
    code = "from instructedit.models.allocator import keep_freed_memory; print(keep_freed_memory())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # for good: apart
    assert done.stdout.strip() == "True"


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    assert not allocator.keep_freed_memory()
    assert not allocator.return_freed_memory()


def test_memory_is_returned_once_a_process_has_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    resident = iter([100, 114, 116, 110, 114, 125, 127])  # a return after the third and the last step
    monkeypatch.setattr(allocator, "resident_bytes", lambda: next(resident))
    monkeypatch.setattr(allocator, "return_freed_memory", lambda: True)
    freed = allocator.FreedMemory()
    assert [freed.after_step() for _ in range(7)] == [False, False, True, False, False, False, True]


def test_gaps_between_live_blocks_are_returned() -> None:
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("not glibc")
    code = """
import ctypes
from instructedit.models.allocator import keep_freed_memory, resident_bytes, return_freed_memory

keep_freed_memory()
blocks = [ctypes.create_string_buffer(100_000) for _ in range(2000)]
live = blocks[::20]
del blocks
before = resident_bytes()
assert return_freed_memory()
print(before - resident_bytes())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 100e6
