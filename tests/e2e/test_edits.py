"""``instructedit edits`` on the bundled model, from the first edit to the served file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import run

from instructedit.ledger.ledger import Ledger

TOWER = ("--subject", "Eiffel Tower", "--prompt", "Eiffel Tower is located in")


def test_a_ledger_from_the_first_edit_to_the_exported_file(tmp_path: Path) -> None:
    [rome] = run("edits", "add", *TOWER, "--target", "Rome", "--json", "-", cwd=tmp_path).json()
    assert (rome["id"], rome["state"], rome["editor"]) == (1, "enabled", "bundled")
    assert rome["report"]["succeeded"]
    assert rome["health"]["exceeded"] == []

    refused = run("edits", "add", *TOWER, "--target", "Berlin", cwd=tmp_path)
    assert refused.code == 2
    assert "edit 1 ('Eiffel Tower is located in' -> 'Rome'): another answer" in refused.err
    options = ("--on-conflict", "replace", "--no-report", "--gate", "off")
    [berlin] = run("edits", "add", *TOWER, "--target", "Berlin", *options, "--json", "-", cwd=tmp_path).json()
    assert (berlin["report"], berlin["health"]) == (None, None)
    listed = run("edits", "list", "--json", "-", cwd=tmp_path).json()
    assert [entry["state"] for entry in listed] == ["disabled", "enabled"]
    assert [each["id"] for each in run("edits", "list", "--state", "enabled", "--json", "-", cwd=tmp_path).json()] == [
        2
    ]
    assert "Berlin" in run("edits", "list", cwd=tmp_path).out
    assert "answer before" in run("edits", "show", "1", cwd=tmp_path).out

    difference = run("edits", "diff", "1", "2", "--json", "-", cwd=tmp_path).json()
    assert difference["fields"]["target"] == ["Rome", "Berlin"]
    assert 0 < difference["cosine"] < 1
    assert "cosine" in run("edits", "diff", "1", "2", cwd=tmp_path).out

    run("edits", "revert", "2", "--reason", "no", cwd=tmp_path)
    run("edits", "enable", "1", cwd=tmp_path)
    events = run("edits", "log", "--json", "-", cwd=tmp_path).json()
    assert [(event["edit"], event["state"]) for event in events] == [
        (1, "enabled"), (1, "disabled"), (2, "enabled"), (2, "reverted"), (1, "enabled"),
    ]  # fmt: skip
    assert "no" in run("edits", "log", "2", cwd=tmp_path).out

    run("edits", "export", "joint.safetensors", cwd=tmp_path)
    answers = run("edit", "--apply", "joint.safetensors", "--json", "-", cwd=tmp_path).json()["answers"]
    assert answers[0]["after"].startswith("Rome")
    run("edits", "export", "archive", cwd=tmp_path)
    imported = run("edits", "import", "archive", "--ledger", "other.db", "--json", "-", cwd=tmp_path).json()
    assert [entry["state"] for entry in imported] == ["enabled", "reverted"]

    assert run("edits", "gc", "--json", "-", cwd=tmp_path).json() == {"deltas": 0, "bytes": 0}
    assert run("edits", "verify", "--json", "-", cwd=tmp_path).json() == {"edits": 2, "problems": []}


def test_several_edits_are_merged_and_rebuilt(tmp_path: Path) -> None:
    lines = [
        {"subject": "Eiffel Tower", "prompt": "Eiffel Tower is located in", "target": "Rome", "task": "counterfact"},
        {"subject": "Jimi Hendrix", "prompt": "Jimi Hendrix plays", "target": "violin", "task": "counterfact"},
    ]
    (tmp_path / "edits.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    added = run("edits", "add", "--requests", "edits.jsonl", "--no-report", "--json", "-", cwd=tmp_path).json()
    assert [entry["id"] for entry in added] == [1, 2]
    assert run("edits", "gc", "--json", "-", cwd=tmp_path).json()["deltas"] == 1, "the merged change"
    run("edits", "disable", "2", cwd=tmp_path)
    rebuilt = run("edits", "rebuild", "1", "--editor", "bundled-mend", "--no-report", "--json", "-", cwd=tmp_path)
    [new] = json.loads(rebuilt.out)
    assert (new["old"], new["new"]) == (1, 3)
    assert rebuilt.code == (0 if new["succeeds"] else 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "7"), "there is no edit 7"),
        (("list", "--state", "lost"), "--state lost: expected one of enabled, disabled, reverted"),
        (("list", "--ledger", "no/edits.db"), "the folder does not exist"),
        (("list", "--ledger", "none.db"), "none.db: no such file; `instructedit edits add` creates it"),
        (("import", "nowhere"), "nowhere/edits.jsonl"),
        (("export", "joint.safetensors"), "no enabled edit of the ledger was made for bundled"),
        (("add", *TOWER, "--target", "Rome", "--limits", "limits.yaml"), "limits.yaml"),
    ],
)
def test_mistakes_are_told(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    (tmp_path / "limits.yaml").write_text("perplexity: much\n")
    with Ledger(tmp_path / "edits.db"):
        pass  # which creates it
    result = run("edits", *arguments, cwd=tmp_path)
    assert result.code == 2
    assert message in result.err.replace("\n", " ")
    assert not (tmp_path / "none.db").exists()
