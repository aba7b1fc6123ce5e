"""Whatever goes wrong in a command is told in words, with an exit code, and never as a traceback."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from command import Result, run

import instructedit.cli.tasks as tasks_module
from instructedit.cli.endpoints import public_address
from instructedit.cli.failures import failure_of
from instructedit.errors import DataError, EditorError

NASTY = "[/b][red]\x1b[31m"
LITERAL = "[/b][red]\\x1b[31m"


Main = Callable[..., Result]


@pytest.fixture
def main(tmp_path: Path) -> Main:
    """Return the command, run in an empty folder."""

    def call(*arguments: str | Path) -> Result:
        return run(*arguments, cwd=tmp_path, columns=300)

    return call


def no_model(*arguments: object, **options: object) -> None:
    pytest.fail("a model was loaded")


@pytest.fixture
def nothing_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    import instructedit.models.language_model as language_model

    monkeypatch.setattr(language_model, "load_language_model", no_model)


def test_version(main: Main) -> None:
    result = main("--version")
    assert (result.code, result.out) == (0, f"instructedit {version('instructedit')}\n")


def test_completion_is_there(main: Main) -> None:
    assert "--install-completion" in main("--help").out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["evaluate", "--protocol", NASTY], LITERAL),
        (["tasks", f"--{NASTY}"], LITERAL),
        ([NASTY], LITERAL),
        (["instructions", NASTY], LITERAL),
        (["evaluate", "--task", "zsre", "--data", "x", "--limit", NASTY], "--limit"),
        (["doctor", "--device-map", NASTY], "--device-map"),
        (["doctor", "--device-map", "[1]"], "not [1]"),
    ],
)
def test_mistakes_in_the_command_line_are_printed_literally(main: Main, arguments: list[str], told: str) -> None:
    result = main(*arguments)
    assert result.code == 2
    assert result.err.startswith("Usage: instructedit")
    assert "--help' for help" in result.err
    assert told in result.err
    assert "\x1b" not in result.err
    assert not result.out


@pytest.mark.parametrize("command", ["demo", "doctor", "tasks"])
def test_json_wants_a_file(main: Main, command: str) -> None:
    result = main(command, "--json")
    assert result.code == 2
    assert "'--json' requires an argument" in result.err


def test_no_command_is_help(main: Main) -> None:
    result = main()
    assert "Usage: instructedit" in result.out + result.err
    assert "error" not in result.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["tasks", NASTY],
        ["evaluate", "--task", NASTY, "--data", "x"],
        ["evaluate", "--task", "zsre", "--data", NASTY],
        ["evaluate", "--task", "zsre", "--data", "x", "--templates", "[/b]"],
        ["edit", "--requests", NASTY],
        ["train", NASTY],
        ["train", f"{NASTY}.yaml"],
        ["build-base", NASTY, "--out", "left"],
        ["reproduce", NASTY],
        ["reproduce", f"{NASTY}.yaml"],
        ["doctor", "--recipe", NASTY],
        ["instructions", "show", "--task", "zsre", "--template-file", NASTY],
        ["instructions", "score", "--task", "zsre", "--template-file", NASTY],
        ["instructions", "generate", "--task", "zsre", "--proposer", NASTY],
        ["instructions", "optimize", "--task", "zsre", "--out", "bank.yaml", "--budget", NASTY],
        ["analyze", "directions", "--editor", "a=b", "--out", "left", "--results", NASTY],
    ],
)
@pytest.mark.usefixtures("nothing_loads")
def test_files_that_cannot_be_read(main: Main, tmp_path: Path, arguments: list[str]) -> None:
    """As they are, a folder in their place, and with a NUL in the name."""
    for swap in (NASTY, "", "a\0b"):
        given = [
            argument.replace(NASTY, swap) if swap else argument.replace(NASTY, str(tmp_path)) for argument in arguments
        ]
        result = main(*given)
        assert result.code == 2, result.err
        if "\0" not in "".join(given):  # typer's own check, as a usage error
            assert result.err.startswith(("error DataError\n", "error RecipeError\n")), (given, result.err)
        assert "\x1b" not in result.err
        assert "\x00" not in result.err
        if swap == NASTY and any(NASTY in argument for argument in arguments):
            assert "[/b]" in result.err
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def unwritable(tmp_path: Path) -> list[Path]:
    """Paths that cannot be written, by root neither."""
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir(exist_ok=True)
    return [tmp_path / "folder", tmp_path / "file" / "below", Path("/proc/instructedit.json"), tmp_path / ("n" * 300)]


@pytest.mark.parametrize(
    "arguments",
    [
        ["demo", "--json"],
        ["edit", "--prompt", "a", "--target", "b", "--json"],
        ["edit", "--prompt", "a", "--target", "b", "--out"],
        ["evaluate", "--task", "zsre", "--data", "bundled/zsre.jsonl", "--json"],
        ["doctor", "--json"],
        ["tasks", "--json"],
        ["train", "tiny.yaml", "--json"],
        ["reproduce", "table3", "--json"],
        ["build-base", "x.yaml", "--out", "left", "--json"],
        ["instructions", "show", "--task", "zsre", "--json"],
        ["instructions", "generate", "--task", "zsre", "--out"],
        ["instructions", "score", "--task", "zsre", "--json"],
        ["instructions", "optimize", "--task", "zsre", "--out", "bank.yaml", "--json"],
        ["instructions", "optimize", "--task", "zsre", "--out"],
    ],
)
@pytest.mark.usefixtures("nothing_loads")
def test_files_that_cannot_be_written_are_reported_first(main: Main, tmp_path: Path, arguments: list[str]) -> None:
    assert main(*arguments, "a\0b").code == 2
    for path in unwritable(tmp_path):
        result = main(*arguments, path)
        assert result.code == 2, result.err
        assert result.err.startswith("error DataError\nfile ")
        assert "cannot be written" in result.err or "is not a valid file name" in result.err


TINY = "base: bundled\neditor: {}\ntasks: [{task: zsre, files: [x.jsonl]}]\noptimisation: {steps: 1}\n"


@pytest.mark.usefixtures("nothing_loads")
def test_folders_that_cannot_be_written_are_reported_first(main: Main, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "file").write_text("")
    for folder in ("file", "file/below", "/proc/instructedit"):
        for arguments in (
            ["train", "tiny.yaml"],
            ["reproduce", "table3", "--data", str(tmp_path)],
            ["analyze", "directions", "--editor", "a=b"],
        ):
            result = main(*arguments, "--out", folder)
            assert result.code == 2, result.err
            assert result.err.startswith("error DataError\nfile "), result.err


@pytest.mark.parametrize("arguments", [[], ["zsre"]])
def test_json_is_a_file_or_prints_nothing_else(main: Main, tmp_path: Path, arguments: list[str]) -> None:
    printed = main("tasks", *arguments, "--json", "-")
    assert (printed.code, printed.err) == (0, "")
    written = main("tasks", *arguments, "--json", "deep/out.json")
    assert written.code == 0
    assert json.loads((tmp_path / "deep" / "out.json").read_text(encoding="utf-8")) == json.loads(printed.out)
    assert main("tasks", *arguments, "--json", "/dev/null").code == 0
    assert Path("/dev/null").is_char_device()


def test_arguments_that_are_no_text(main: Main) -> None:
    result = main("tasks", "caf\udce9")
    assert result.code == 2
    assert result.err == "error DataError\nthe argument 'caf\\udce9' is not UTF-8 text\n"


def test_summaries_of_own_tasks_are_literal(main: Main, tmp_path: Path) -> None:
    assert main("tasks", "zsre").out.startswith("zsre: correct the answer")
    main("tasks", "zsre", "--json", "zsre.json")
    task = json.loads((tmp_path / "zsre.json").read_text(encoding="utf-8"))
    task |= {"name": "own", "summary": NASTY}
    (tmp_path / "[own].yaml").write_text(json.dumps(task), encoding="utf-8")
    for arguments in (["tasks", "[own].yaml"], ["instructions", "show", "--task", "[own].yaml"]):
        result = main(*arguments)
        assert result.code == 0, result.err
        assert result.out.startswith(f"own: {LITERAL}\n")


def raising(error: BaseException) -> Callable[..., None]:
    def fail(*arguments: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (DataError("is [/b]", file="[red]x"), 2, "error DataError\nfile [red]x: is [/b]\n"),
        (EditorError("no\x1bgradient"), 2, "error EditorError\nno\\x1bgradient\n"),
        (MemoryError(), 2, "error EditorError\nout of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 2, "error EditorError\nout of memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 2, "error EditorError\nout of memory"),
        (RecursionError("maximum recursion depth exceeded"), 2, "nested too deeply"),
        (ValueError("embedded null byte"), 2, "NUL"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/[/b]"), 2, "/x/[/b]: Permission denied"),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"), 2, "surrogate"),
        (KeyboardInterrupt(), 130, "interrupted; finished work is kept"),
        (KeyError("[/b]\x1b"), 70, "internal error KeyError: '[/b]\\x1b' (tasks.py:"),
        (RuntimeError("two\nlines"), 70, "internal error RuntimeError: two lines (tasks.py:"),
    ],
)  # fmt: skip
def test_exceptions_become_words(
    main: Main, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, told: str
) -> None:
    monkeypatch.delenv("INSTRUCTEDIT_DEBUG", raising=False)
    monkeypatch.setattr(tasks_module, "load_task", raising(error))
    result = main("tasks", "zsre")
    assert result.code == code
    assert told in result.err
    assert len(result.err.splitlines()) <= 2
    assert "Traceback" not in result.err


def test_the_traceback_is_there_for_who_asks(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSTRUCTEDIT_DEBUG", "1")
    monkeypatch.setattr(tasks_module, "load_task", raising(KeyError("x")))
    result = main("tasks", "zsre")
    assert result.code == 70
    assert "Traceback" in result.err


def test_torch_running_out_of_memory_is_known() -> None:
    import torch

    assert failure_of(torch.OutOfMemoryError("CUDA out of memory.")).code == 2
    with pytest.raises(RuntimeError) as full:
        torch.empty(2**62, dtype=torch.uint8)
    assert failure_of(full.value).code == 2


def process(*arguments: str | bytes, **options: Any) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "instructedit", *arguments]
    return subprocess.run(command, stderr=subprocess.PIPE, timeout=300, check=False, **options)


@pytest.mark.parametrize("arguments", [["tasks", "zsre"], ["tasks", "--json", "-"], ["--help"]])
def test_a_full_output(arguments: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = process(*arguments, stdout=full)
    assert done.returncode == 2
    assert b"No space left on device" in done.stderr
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    assert len(done.stderr.splitlines()) == 2


@pytest.mark.parametrize("arguments", [["tasks", "zsre"], ["tasks", "--json", "-"]])
def test_a_reader_that_has_gone(arguments: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    done = process(*arguments, stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_encodings_that_lack_characters(tmp_path: Path, encoding: str) -> None:
    shown = process("tasks", "zsre", "--json", "-", stdout=subprocess.PIPE)
    task = json.loads(shown.stdout) | {"name": "own", "summary": "東京 … é"}
    (tmp_path / "own.yaml").write_text(json.dumps(task), encoding="utf-8")
    environment = os.environ | {"PYTHONIOENCODING": encoding, "LC_ALL": "C"}
    plain = process("tasks", "own.yaml", stdout=subprocess.PIPE, cwd=tmp_path, env=environment)
    assert plain.returncode == 0, plain.stderr
    assert b"\\u6771" in plain.stdout
    printed = process("tasks", "own.yaml", "--json", "-", stdout=subprocess.PIPE, cwd=tmp_path, env=environment)
    assert json.loads(printed.stdout.decode(encoding))["summary"] == "東京 … é"


def test_bytes_that_are_not_text() -> None:
    done = process("tasks", b"\xff\xfe", stdout=subprocess.PIPE)
    assert done.returncode == 2
    assert done.stderr == b"error DataError\nthe argument '\\udcff\\udcfe' is not UTF-8 text\n"


SECRET = "sk_live_0123456789"


@pytest.mark.parametrize("command", ["generate", "optimize"])
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--key-env", SECRET], "--key-env takes the NAME"),
        (["--key-env", "sk-live.0"], "--key-env takes the NAME"),
        (["--key-env", "KEY", "--base-url", f"user:{SECRET}@host"], "--base-url takes a URL"),
        (["--key-env", "KEY", "--base-url", f"http://[{SECRET}"], "--base-url takes a URL"),
    ],
)
def test_secrets_are_not_printed(
    main: Main, monkeypatch: pytest.MonkeyPatch, command: str, options: list[str], told: str
) -> None:
    monkeypatch.setenv("KEY", "x")
    more = ["--out", "bank.yaml"] if command == "optimize" else []
    result = main(
        "instructions", command, "--task", "zsre", "--proposer", "endpoint", "--proposer-model", "m", *options, *more
    )
    assert result.code == 2
    assert told in result.err
    assert SECRET not in result.err + result.out
    assert "sk-live" not in result.err


def test_the_trace_gets_no_password() -> None:
    assert public_address(f"https://me:{SECRET}@host:8443/v1?key={SECRET}#{SECRET}") == "https://host:8443/v1"
    assert public_address("http://localhost:8000/v1") == "http://localhost:8000/v1"
