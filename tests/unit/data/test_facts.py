"""The facts table and T-REx files: what is wrong with them is told by its line."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from instructedit.data.facts import Fact, read_facts, read_trex, relation_templates, write_facts
from instructedit.errors import DataError

HEAD = "source\trelation\tsubject\tobject\n"


def test_facts_survive_writing_and_reading(tmp_path: Path) -> None:
    facts = [Fact("own", "mayor", 'Maravel "the old"', "Lena\nRoth"), Fact("own", "P17", "Oston", "Ü")]
    write_facts(facts, tmp_path / "facts.tsv.gz")
    assert read_facts(tmp_path / "facts.tsv.gz") == facts


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"no gzip", "cannot be read: Not a gzipped file"),
        (gzip.compress(HEAD.encode() * 50)[:-12], "cannot be read"),
        (gzip.compress(HEAD.encode())[:12] + b"\xff" * 30, "cannot be read"),
        (gzip.compress(HEAD.encode() + b"\xff"), "is not UTF-8 text"),
        (gzip.compress(b"a\tb\n"), "has the columns"),
        (gzip.compress(b""), "has the columns"),
        (gzip.compress(f"{HEAD}a\tb\tc\n".encode()), "line 2: expected 4 columns"),
        (gzip.compress(f"{HEAD}a\tb\tc\td\ne\tf\tg\th\ti\n".encode()), "line 3: expected 4 columns"),
        (gzip.compress(f"{HEAD}a\tb\t\td\n".encode()), "line 2: expected 4 columns"),
        (gzip.compress(f"{HEAD}a\tb\tc\t{'d' * 200_000}\n".encode()), "line 2: field larger"),
    ],
    ids=[
        "no gzip",
        "cut",
        "garbled",
        "no text",
        "other columns",
        "empty",
        "three columns",
        "five columns",
        "blank column",
        "long",
    ],  # compressed bytes hold the time, and so would ids made from them
)
def test_a_file_that_is_not_a_table_is_reported(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "facts.tsv.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=problem) as caught:
        read_facts(path)
    assert str(caught.value).startswith(f"file {path}: ")
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{oh", "line 2 is not valid JSON"),
        (b"[1]", "found list"),
        (b'{"sub_label": "a"}', "line 2: expected strings"),
        (b'{"sub_label": 1, "obj_label": "a"}', "line 2: expected strings"),
        (b"\xff", "is not UTF-8"),
    ],
)
def test_a_line_that_is_not_a_fact_is_reported(tmp_path: Path, line: bytes, problem: str) -> None:
    relation = next(iter(relation_templates()))
    (tmp_path / f"{relation}.jsonl").write_bytes(b'{"sub_label": "a", "obj_label": "b"}\n' + line)
    with pytest.raises(DataError, match=problem):
        read_trex(tmp_path)
