"""What the command prints is what it was given: no markup, no escape sequences, and nothing goes past the console."""

from __future__ import annotations

import ast
import io
import json
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import instructedit.cli.console as console
from instructedit.cli.console import Console, Progress, emit_json, fail, out, styled, table, visible

COMMANDS = sorted(Path(console.__file__).parent.glob("*.py"))
NASTY = ["[/b]", "[red]gone[/red]", ":smile:", "[link=x]y[/link]", "[bold", "\\[x]", "[/]"]


def shown(*objects: Any, **options: Any) -> str:
    stream = io.StringIO()
    Console(file=stream, width=200).print(*objects, **options)
    return stream.getvalue()


@pytest.mark.parametrize("text", NASTY)
def test_markup_stands_there_as_it_is(text: str) -> None:
    assert shown(text) == f"{text}\n"
    assert shown(text, style="dim", markup=True) == f"{text}\n"
    assert shown(styled(text, (text, "bold"))) == f"{text}{text}\n"
    assert shown(Path(text), 3) == f"{Path(text)} 3\n"
    assert shown([text]) == f"{[text]}\n"
    figures = table("head " + text, title=text)
    figures.add_row(text)
    figures.add_row(styled((text, "bold")))
    printed = shown(figures)
    assert printed.count(text) == 4
    assert f"head {text}" in printed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\x9b31m", "\\x9b31m"),
        ("a\rb\x00c\x07\x7f", "a\\x0db\\x00c\\x07\\x7f"),
        ("one\u202etwo\u2066", "one\\u202etwo\\u2066"),
        ("\ud800", "\\ud800"),
        ("a\nb", "a\nb"),
        ("東京 … é 😀 عربي", "東京 … é 😀 عربي"),
    ],
)
def test_control_characters_are_visible(text: str, expected: str) -> None:
    assert visible(text) == expected
    assert shown(text) == expected + "\n"
    assert shown(styled(text)) == expected + "\n"
    figures = table("head", title=text.replace("\n", " "))
    figures.add_row(text.replace("\n", " "))
    assert shown(figures).count(expected.replace("\n", " ")) == 2


def test_tabs_are_kept() -> None:
    assert visible("a\tb") == "a\tb"


def test_failures_and_log_messages_are_literal(capsys: pytest.CaptureFixture[str]) -> None:
    fail("DataError", "file [/b]\x1b[2J: is " + "long " * 40)
    logger = logging.getLogger("instructedit.test_console")
    logger.addHandler(console._Handler())
    logger.propagate = False
    logger.warning("text %s", "[/i]\x1b")
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "error DataError"
    assert told[1].startswith("file [/b]\\x1b[2J: is long long")
    assert len(told[1]) > 200
    assert told[2] == "text [/i]\\x1b"


def test_progress_on_a_terminal_is_literal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(
        console, "err", Console(file=stream, force_terminal=True, width=120, _environ={"TERM": "xterm"})
    )
    with Progress() as bar:
        job = bar.add_task("task [/b]", total=2, note="")
        bar.update(job, advance=1, note="a\n[/i]\x1b]0;title\x07")
        bar.update(job, completed=2, total=2)
    assert "task [/b]" in stream.getvalue()
    assert "a [/i]\\x1b]0;title\\x07" in stream.getvalue()


def lines_of(monkeypatch: pytest.MonkeyPatch, at: list[float]) -> io.StringIO:
    stream = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=stream, width=40))
    monkeypatch.setattr(console.time, "monotonic", lambda: at[0])
    return stream


def test_progress_in_a_pipe_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    at = [0.0]
    stream = lines_of(monkeypatch, at)
    with console.progress() as bar:
        job = bar.add_task("encoder", total=100)
        for step in range(1, 101):
            at[0] = step / 2  # seconds
            bar.update(job, completed=step, note=f"loss {1 / step:.3f} [/b]")
        other = bar.add_task("train", total=3)
        bar.update(other, advance=1)
        bar.update(other, advance=1)
        bar.update(other, advance=1, note="validation 0.5 and more words than fit into the width")
    lines = stream.getvalue().splitlines()
    steps = [line.split(" ", 2)[1] for line in lines if line.startswith("encoder")]
    assert steps == ["1/100", "21/100", "41/100", "61/100", "81/100", "100/100"]
    assert lines[0] == "encoder 1/100 loss 1.000 [/b]"
    assert lines[-2:] == ["train 1/3", "train 3/3 validation 0.5 and more words than fit into the width"]


def test_a_total_that_comes_later(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = lines_of(monkeypatch, [0.0])
    with console.progress() as bar:
        job = bar.add_task("training", total=None)
        bar.update(job, completed=1)
        bar.update(job, completed=2, total=5)
    assert stream.getvalue() == "training 1\ntraining 2/5\n"


class _Stream(io.TextIOWrapper):
    def __init__(self, encoding: str) -> None:
        super().__init__(io.BytesIO(), encoding=encoding)

    def content(self) -> bytes:
        self.flush()
        return self.buffer.getvalue()  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize(
    ("encoding", "raw"), [("ascii", b"\\u6771"), ("latin-1", b"\\u6771"), ("utf-8", "東".encode())]
)
def test_json_is_valid_in_every_encoding(monkeypatch: pytest.MonkeyPatch, encoding: str, raw: bytes) -> None:
    stream = _Stream(encoding)
    monkeypatch.setattr(console.sys, "stdout", stream)
    emit_json({"é": "東"}, Path("-"))
    assert raw in stream.content()
    assert json.loads(stream.content().decode(encoding))["é"] == "東"


def test_json_holds_no_nan_and_no_broken_text(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "out.json"
    emit_json({"a": [float("nan"), 1.5, {"b": -float("inf")}], "half": "\ud800"}, path)
    text = path.read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name))["a"] == [None, 1.5, {"b": None}]


def test_json_into_a_device_a_pipe_and_a_link(tmp_path: Path) -> None:
    emit_json({"a": 1}, Path("/dev/null"))
    assert Path("/dev/null").is_char_device()
    os.mkfifo(tmp_path / "fifo")
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "fifo").read_text()), daemon=True)
    reader.start()
    emit_json({"a": 1}, tmp_path / "fifo")
    reader.join(10)
    assert json.loads(got[0]) == {"a": 1}
    (tmp_path / "link").symlink_to(tmp_path / "there.json")
    emit_json({"a": 1}, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert json.loads((tmp_path / "there.json").read_text()) == {"a": 1}


def test_a_reader_that_has_gone_ends_it_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(out, "quiet", False)  # it is put back
    monkeypatch.setattr(console.sys, "stdout", Gone())
    with pytest.raises(SystemExit) as left:
        emit_json({}, Path("-"))
    assert left.value.code == 141
    with pytest.raises(SystemExit) as left:
        Console(file=Gone()).print("x")
    assert left.value.code == 141


def past_the_console(tree: ast.AST) -> Iterator[int]:
    """Lines that bring in rich, or write to a stream themselves."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            if any(alias.name.split(".")[0] == "rich" for alias in node.names):
                yield node.lineno
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").split(".")[0] == "rich":
                yield node.lineno
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in {"print", "typer.echo", "typer.secho", "typer.prompt", "typer.confirm", "click.echo"} or (
                called.endswith((".stdout.write", ".stderr.write"))
            ):
                yield node.lineno


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_only_the_console_prints(path: Path) -> None:
    if path.stem != "console":
        assert list(past_the_console(ast.parse(path.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    "source", ["import rich.table", "from rich import print", "typer.echo(x)", "sys.stderr.write(x)", "print(x)"]
)
def test_a_way_past_it_is_seen(source: str) -> None:
    assert list(past_the_console(ast.parse(source))) == [1]
