"""Where the data sets are is said by the environment, and by nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from instructedit.data.locations import DATA_VARIABLE, data_folder, find_data
from instructedit.errors import DataError


def test_a_folder_beside_the_working_folder_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shared" / "data").mkdir(parents=True)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    assert data_folder() is None
    with pytest.raises(DataError, match=DATA_VARIABLE):
        find_data()


def test_bundled_files_and_whole_paths_need_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    assert find_data(["bundled/counterfact.jsonl", str(tmp_path / "own.json")]) == Path()
    with pytest.raises(DataError, match=DATA_VARIABLE):
        find_data(["bundled/counterfact.jsonl", "own.json"])


def test_the_variable_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    assert find_data() == data_folder() == tmp_path
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="nowhere"):
        find_data()
