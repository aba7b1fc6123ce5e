"""The README's commands are tests: every block marked ``tested`` has to run as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TESTED = re.findall(r"<!-- tested -->\n```bash\n(.*?)```", README, flags=re.DOTALL)


def test_there_are_tested_blocks() -> None:
    assert len(TESTED) >= 3


@pytest.mark.parametrize("block", TESTED)
def test_block_runs(block: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_python_example_runs() -> None:
    example = re.search(r"From Python:\n\n```python\n(.*?)```", README, flags=re.DOTALL)
    assert example is not None
    names: dict[str, object] = {}
    exec(example[1], names)  # the README's own code
    assert {"model", "editor", "delta"} <= names.keys()


def test_commands_named_in_the_readme_exist() -> None:
    named = set(re.findall(r"^\s*instructedit ([a-z-]+)", README, flags=re.MULTILINE))
    help_text = subprocess.run(
        [sys.executable, "-m", "instructedit", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert named
    assert all(name in help_text for name in named)
