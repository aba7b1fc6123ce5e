"""The command line as the tests call it: in their own process, or in another where that is what is tested.

Starting Python and importing torch takes longer than most commands, so most tests stay in their own process.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import instructedit.cli.app as app


@dataclass(frozen=True)
class Result:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """Return what a command that succeeded printed for ``--json -``."""
        assert self.code == 0, self.err
        return json.loads(self.out)


def environment(columns: int = 100) -> dict[str, str]:
    """Return this process's environment, without a network and with a terminal of a known width."""
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    offline = {"HF_HUB_OFFLINE": "1", "PIP_NO_INDEX": "1"}
    return os.environ | offline | {"OMP_NUM_THREADS": threads, "COLUMNS": str(columns)}


def run(*arguments: str | Path, cwd: Path, columns: int = 100) -> Result:
    """Run ``instructedit ARGUMENTS`` in the folder ``cwd``, inside this process."""
    argv = ["instructedit", *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    with (
        chdir(cwd),
        patch.dict(os.environ, environment(columns)),
        patch.object(sys, "argv", argv),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            app.main()
        except SystemExit as exit_:
            return Result(int(exit_.code or 0), out.getvalue(), err.getvalue())
    raise AssertionError("the command did not leave with an exit code")


def run_apart(*arguments: str | Path, cwd: Path) -> Result:
    """Run ``instructedit ARGUMENTS`` in a process of its own."""
    command = [sys.executable, "-m", "instructedit", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    return Result(done.returncode, done.stdout, done.stderr)
