"""Text, JSON and YAML of users: whatever is wrong with a file is one kind of error, and says where."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from instructedit.errors import DataError
from instructedit.storage.reading import (
    MAX_REPR_LENGTH,
    as_mapping,
    parse_json,
    read_json_file,
    read_text,
    read_yaml_file,
    short_repr,
)


def written(folder: Path, content: bytes | str) -> Path:
    path = folder / "file"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 2000, "nested too deeply"),
        ("[" * 200_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("1" * 4301, "Exceeds the limit"),
        (f'{{"a": [{"9" * 4301}]}}', "Exceeds the limit"),
        ("NaN", "NaN is not a JSON number"),
        ('{"a": Infinity}', "Infinity is not a JSON number"),
        ("[-Infinity]", "-Infinity is not a JSON number"),
        ("1e999", "Out of range float"),
        ('{"a": [-1e400]}', "Out of range float"),
        (r'"\ud800"', "lone surrogate"),
        (r'{"\udfff": 1}', "lone surrogate"),
        ("", "line 1, column 1"),
        ('{"a": 1,\n "b" 2}', "line 2, column 6"),
        ("{} {}", "line 1, column 4"),
    ],
    ids=lambda value: value[:20],
)
def test_json_that_nothing_can_hold_is_reported(tmp_path: Path, text: str, problem: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(DataError, match=re.escape(problem)) as caught:
        read_json_file(path)
    assert str(caught.value).startswith(f"file {path}: ")
    assert len(str(caught.value)) < 400


def test_json_in_a_line_is_reported_by_the_line() -> None:
    with pytest.raises(DataError, match=r"^file x: line 3 is not valid JSON at column 2: "):
        parse_json("{oh", file="x", place="line 3")
    with pytest.raises(DataError, match=r"^line 3 is not usable JSON: NaN"):
        parse_json("NaN", place="line 3")


def test_json_has_the_printed_values() -> None:
    assert parse_json(r'{"a": [1, 2.5, null, true, "\ud83d\ude00"]}') == {"a": [1, 2.5, None, True, "\U0001f600"]}
    assert parse_json("1" * 300) == int("1" * 300)


def test_half_characters_are_let_through_where_they_are_wanted() -> None:
    assert parse_json(r'"\ud800"', lone_surrogates=True) == "\ud800"
    with pytest.raises(DataError, match="Out of range"):
        parse_json("1e999", lone_surrogates=True)


@pytest.mark.parametrize("read", [read_text, read_json_file, read_yaml_file])
def test_bytes_that_are_not_text_are_reported_by_the_first_wrong_one(tmp_path: Path, read: object) -> None:
    path = written(tmp_path, b'"abc\xff"')
    with pytest.raises(DataError, match=r"file: is not UTF-8 text \(byte 4\)"):
        read(path)  # type: ignore[operator]
    with pytest.raises(DataError, match=r"nowhere: cannot be read: No such file"):
        read(tmp_path / "nowhere")  # type: ignore[operator]
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read(tmp_path)  # type: ignore[operator]
    with pytest.raises(DataError, match="is not a valid file name"):
        read("a\0b")  # type: ignore[operator]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    assert read_json_file(written(tmp_path, b"\xef\xbb\xbf[1]")) == [1]


BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nseed: 2024-13-45\n", "at line 2, column 7"),
        ("a: 1\nb: 2\nseed: !!int abc\n", "at line 3, column 7"),
        ("a: !!float abc\n", "at line 1, column 4"),
        ("a: !!timestamp abc\n", "at line 1, column 4"),
        ("a: !!python/object/apply:os.system [id]\n", "at line 1, column 4"),
        ("a: 1\nb: [\n", "at line 3"),
        ("a: \x01\n", "is not valid YAML"),
        (BOMB, "more than 1,000,000 values"),
        ("a: &a [1, *a]\n", "inside the value that it names"),
        ("&a a: 1\nb: &b {c: {d: *b}}\n", "inside the value that it names"),
        ('a: "\\ud800"\n', "surrogate"),
        ("[" * 2000, "nested too deeply"),
        ("a: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("a: " + "1" * 4301, "line 1, column 4"),
        ("? {a: 1}\n: 2\n", "line 1"),
        ("a: 1\n---\nb: 2\n", "line 2"),
        ("a: 1\nb: {c: 1, d: 2, c: 3}\n", "line 2, column 17: the key 'c' is there twice"),
    ],
    ids=lambda value: repr(value[:24]),
)
def test_yaml_that_nothing_can_hold_is_reported(tmp_path: Path, text: str, problem: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(DataError, match=re.escape(problem)) as caught:
        read_yaml_file(path)
    assert str(caught.value).startswith(f"file {path}: ")
    assert len(str(caught.value)) < 500


def test_aliases_that_stand_for_little_are_fine(tmp_path: Path) -> None:
    assert read_yaml_file(written(tmp_path, "a: &a [1]\nb: [*a, *a]\n")) == {"a": [1], "b": [[1], [1]]}


def test_merged_mappings_may_be_overridden(tmp_path: Path) -> None:
    text = "a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  y: 3\n"
    assert read_yaml_file(written(tmp_path, text))["b"] == {"x": 1, "y": 3}


@pytest.mark.parametrize(
    ("value", "problem"),
    [([], "found list"), (None, "found NoneType"), ("text", "found str"), ({3: 1}, "strings as keys, found 3")],
)
def test_what_is_not_a_mapping_is_reported(value: object, problem: str) -> None:
    with pytest.raises(DataError, match=f"^file x: .*{problem}"):
        as_mapping(value, "x")
    assert as_mapping({"a": 1}) == {"a": 1}


def test_a_long_value_is_cut() -> None:
    assert short_repr("short") == "'short'"
    assert short_repr("a" * 200_000) == f"'{'a' * (MAX_REPR_LENGTH - 1)}… (200,002 characters)"
