"""What a ledger keeps, in SQLite and in PostgreSQL."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

import pytest
import torch
from sqlalchemy import text

from instructedit.deltas.delta import Delta
from instructedit.errors import DataError, DeltaError, LedgerError
from instructedit.ledger.archive import read_archive, write_archive
from instructedit.ledger.comparison import compare
from instructedit.ledger.ledger import Ledger
from instructedit.ledger.tables import State
from ledger_edits import new_edit


def numbers_of(delta: Delta) -> torch.Tensor:
    return next(iter(delta.tensors.values()))


def test_an_edit_is_what_was_added(ledger: Ledger) -> None:
    [entry] = ledger.add([new_edit(scale=0.25)])
    assert ledger.edits() == [entry] == [ledger.edit(1)]
    assert (entry.id, entry.state, entry.author, entry.answer) == (1, State.ENABLED, "Ada", "Oston")
    assert entry.request == new_edit().request
    torch.testing.assert_close(numbers_of(ledger.delta(entry)), torch.full((4, 1), 0.25))
    assert ledger.problems() == []


def test_a_ledger_is_the_same_when_it_is_opened_again(ledger: Ledger, where: str) -> None:
    ledger.add([new_edit("Lena"), new_edit("Otto")])
    ledger.set_state([2], State.DISABLED, "wrong")
    with Ledger(where) as again:
        assert again.edits() == ledger.edits()
        assert again.events() == ledger.events()
        assert [event.reason for event in again.events(2)] == [None, "wrong"]


def test_states_and_their_history(ledger: Ledger) -> None:
    ledger.add([new_edit()])
    for state in (State.DISABLED, State.ENABLED, State.ENABLED, State.REVERTED):
        ledger.set_state([1], state)
    assert [event.state for event in ledger.events(1)] == ["enabled", "disabled", "enabled", "reverted"]
    with pytest.raises(LedgerError, match="edit 1 was reverted and stays so; `instructedit edits rebuild 1`"):
        ledger.set_state([1], State.ENABLED)
    assert ledger.edits([State.ENABLED]) == []


def test_all_edits_of_a_command_or_none(ledger: Ledger) -> None:
    ledger.add([new_edit("Lena")])
    with pytest.raises(LedgerError, match="there is no edit 7"):
        ledger.set_state([1, 7], State.DISABLED)
    assert ledger.edit(1).state is State.ENABLED
    with pytest.raises(LedgerError, match="contradicts"):
        ledger.add([new_edit("Otto"), new_edit("Lena", "Weil")])
    assert len(ledger.edits()) == 1


def test_a_contradiction_is_refused_replaced_or_kept(ledger: Ledger) -> None:
    ledger.add([new_edit("Lena", "Oston")])
    other = new_edit("Lena", "Weil")
    with pytest.raises(LedgerError, match=r"edit 1 \('Lena was born in' -> 'Oston'\): another answer"):
        ledger.add([other])
    with pytest.raises(LedgerError, match="the same edit"):
        ledger.add([new_edit("Lena", "oston.")])
    ledger.add([other], "keep")
    ledger.add([new_edit("Lena", "Ulm")], "replace")
    assert [entry.state for entry in ledger.edits()] == ["disabled", "disabled", "enabled"]
    assert ledger.events(1)[-1].reason == "replaced by 'Ulm'"
    ledger.add([new_edit("Lena", "Oston", base="c" * 16)])  # of another model: no contradiction


def test_equal_deltas_are_stored_once(ledger: Ledger) -> None:
    first, second = ledger.add([new_edit(), new_edit()], "keep")
    assert first.delta == second.delta


def test_combinations_are_kept_until_the_next_one(ledger: Ledger) -> None:
    ledger.add([new_edit()])
    combined = new_edit(scale=3.0).delta
    ledger.keep_combination("a" * 64, combined)
    stored = ledger.combination("a" * 64)
    assert stored is not None
    torch.testing.assert_close(numbers_of(stored), numbers_of(combined))
    ledger.keep_combination("c" * 64, new_edit(scale=4.0).delta)
    assert ledger.combination("a" * 64) is None
    count, size = ledger.collect_garbage()
    assert count == 1
    assert size > 100
    assert ledger.combination("c" * 64) is None
    assert ledger.problems() == []


def test_a_damaged_delta_is_told(ledger: Ledger) -> None:
    entry, _ = ledger.add([new_edit("Lena"), new_edit("Otto", scale=2.0)])
    with ledger.database.writing() as session:
        session.execute(text("UPDATE deltas SET content = :content WHERE digest = :digest"),
                        {"content": b"spoilt", "digest": entry.delta})  # fmt: skip
    with pytest.raises(LedgerError, match=rf"edit 1: its delta {entry.delta[:12]} is damaged; rebuild"):
        ledger.delta(entry)
    problems = ledger.problems()
    assert len(problems) == 2
    assert all("damaged" in problem for problem in problems)
    assert ledger.edit(2).request.subject == "Otto"


def test_a_state_that_no_event_explains_is_told(ledger: Ledger) -> None:
    ledger.add([new_edit()])
    with ledger.database.writing() as session:
        session.execute(text("UPDATE edits SET state = 'disabled'"))
    assert ledger.problems() == ["edit 1: is disabled, but its last event is enabled"]


def test_a_newer_ledger_is_refused_and_left_alone(ledger: Ledger, where: str) -> None:
    ledger.add([new_edit()])
    with ledger.database.writing() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(LedgerError, match=r"newer version of InstructEdit \(its tables are of version 9999, known is"):
        Ledger(where)
    assert len(ledger.edits()) == 1


def test_an_archive_takes_edits_to_another_ledger(ledger: Ledger, tmp_path: Path) -> None:
    ledger.add([new_edit("Lena"), new_edit("Otto")])
    ledger.set_state([2], State.DISABLED, "wrong")
    write_archive(ledger, ledger.edits(), tmp_path / "archive")
    with Ledger(tmp_path / "other.db") as other:
        other.add([new_edit("Mira")])
        added, known = read_archive(other, tmp_path / "archive")
        assert ([entry.id for entry in added], known) == ([2, 3], 0)
        for old, new in zip(ledger.edits(), added, strict=True):
            assert {**vars(old), "id": 0} == {**vars(new), "id": 0}
            torch.testing.assert_close(numbers_of(ledger.delta(old)), numbers_of(other.delta(new)))
        assert [event.reason for event in other.events(3)] == [None, "wrong"]
        assert read_archive(other, tmp_path / "archive") == ([], 2)
        assert other.problems() == []
    with pytest.raises(LedgerError, match="is not empty"):
        write_archive(ledger, ledger.edits(), tmp_path / "archive")


def test_a_damaged_archive_adds_nothing(tmp_path: Path) -> None:
    with Ledger(tmp_path / "edits.db") as ledger:
        ledger.add([new_edit("Lena"), new_edit("Otto", scale=2.0)])
        write_archive(ledger, ledger.edits(), tmp_path / "archive")
    lines = (tmp_path / "archive/edits.jsonl").read_text().splitlines()
    file = tmp_path / "archive/deltas" / f"{'0' * 64}.safetensors"
    spoilt = [
        ('"prompt": ', '"promt": ', LedgerError, "line 2: is not an edit"),
        ('"state": "enabled"', '"state": "on"', LedgerError, "line 2"),
        ('"delta": "', '"delta": "../', LedgerError, "64 hexadecimal"),
        ("{", "[", DataError, "line 2"),
    ]
    with Ledger(tmp_path / "other.db") as other:
        for old, new, error, message in spoilt:
            (tmp_path / "archive/edits.jsonl").write_text(f"{lines[0]}\n{lines[1].replace(old, new, 1)}\n")
            with pytest.raises(error, match=message):
                read_archive(other, tmp_path / "archive")
        (tmp_path / "archive/edits.jsonl").write_text("\n".join(lines))
        file = next((tmp_path / "archive/deltas").glob("*.safetensors"))
        file.write_bytes(file.read_bytes()[:-2])
        with pytest.raises(DeltaError):
            read_archive(other, tmp_path / "archive")
        assert other.edits() == []


def test_two_edits_are_compared(ledger: Ledger) -> None:
    ledger.add([new_edit("Lena"), new_edit("Lena", "Weil", scale=2.0), new_edit("Lena", base="c" * 16)], "keep")
    found = compare(ledger, 1, 2)
    assert found["fields"].keys() == {"target", "delta"}
    assert found["fields"]["target"] == ["Oston", "Weil"]
    assert found["cosine"] == pytest.approx(1.0)
    assert compare(ledger, 1, 3)["cosine"] is None


def test_other_files_are_no_ledgers(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("not a database, but long enough to be taken for one" * 100)
    with pytest.raises(LedgerError, match="not a ledger, or it is damaged"):
        Ledger(tmp_path / "text.db")
    with pytest.raises(LedgerError, match="the folder does not exist"):
        Ledger(tmp_path / "no" / "edits.db")
    with sqlite3.connect(tmp_path / "other.db") as connection:
        connection.execute("CREATE TABLE edits (title TEXT)")
    with pytest.raises(LedgerError, match="other tables of these names"):
        Ledger(tmp_path / "other.db")
    with pytest.raises(LedgerError, match="Give a file, or postgresql"):
        Ledger("nosuch://host/name")
    with pytest.raises(LedgerError, match="ledger postgresql"):
        Ledger("postgresql+psycopg://nobody@/none?host=/nonexistent")


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    with Ledger(tmp_path / "edits.db") as ledger:
        ledger.add([new_edit("Lena")])

        with ledger.database.reading() as session:
            pages = session.execute(text("PRAGMA page_count")).scalar()
        # SQLite reports a file that may not grow as it reports a full disk; the limit is of one connection.
        from sqlalchemy import event

        @event.listens_for(ledger.database._engine, "begin")
        def limit(connection: object) -> None:
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")  # type: ignore[attr-defined]

        def fill() -> None:
            for index in range(50):
                ledger.add([new_edit(f"Subject {index}", scale=float(index))])

        with pytest.raises(LedgerError, match="the disk is full; nothing was changed"):
            fill()
        count = len(ledger.edits())
    with Ledger(tmp_path / "edits.db") as ledger:
        assert len(ledger.edits()) == count
        assert ledger.problems() == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_to(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with Ledger(folder / "edits.db") as ledger:
        ledger.add([new_edit()])
    folder.chmod(0o500)
    try:
        with pytest.raises(LedgerError, match="may not be written to"), Ledger(folder / "edits.db") as ledger:
            ledger.add([new_edit("Otto")])
        with pytest.raises(LedgerError, match="may not be written to"):
            Ledger(folder / "new.db")
    finally:
        folder.chmod(0o700)
    with Ledger(folder / "edits.db") as ledger:
        assert len(ledger.edits()) == 1


def test_a_file_that_may_only_be_read(tmp_path: Path) -> None:
    with Ledger(tmp_path / "edits.db") as ledger:
        ledger.add([new_edit()])
    shutil.copy(tmp_path / "edits.db", tmp_path / "copy.db")
    with Ledger(f"sqlite:///file:{tmp_path}/copy.db?mode=ro&uri=true") as ledger:
        assert len(ledger.edits()) == 1
        with pytest.raises(LedgerError, match="may not be written to; nothing was changed"):
            ledger.add([new_edit("Otto")])
