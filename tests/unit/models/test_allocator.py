"""Keeping freed memory: done on glibc, and harmless elsewhere."""

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
