"""The command as a user runs it: a process of its own on a tiny saved checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from instructedit.deltas.delta import Delta, DeltaMetadata
from instructedit.deltas.files import load_delta, save_delta
from instructedit.records import EditRecord

pytestmark = pytest.mark.xdist_group("cli")  # they share a trained editor

PROMPT, TARGET, OTHER = "Lena was born in", "Oston", "The harbour of Maravel is"
RECIPE: dict[str, Any] = {
    "editor": {"blocks": 2, "rank": 4, "code": 4, "step_size": 1.0},
    "tasks": [{"task": "counterfact", "files": ["own.jsonl"]}],
    "encoder_warmup": {"steps": 2, "batch": 4},
    "optimisation": {"steps": 2, "batch": 2, "validation_edits": 2},
}


@dataclass(frozen=True)
class Result:
    """What a command left."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


def run(*arguments: str | Path, cwd: Path) -> Result:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "100", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "instructedit", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)
    return Result(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True)
class Workplace:
    """A folder with a model, edits and an editor that the command itself has trained."""

    folder: Path
    model: Path
    training: Result
    editor: Path


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory,
    checkpoint: Callable[[str], Path],
    records: list[EditRecord],
    write_jsonl: Callable[[Path, list[EditRecord]], Path],
) -> Workplace:
    folder = tmp_path_factory.mktemp("cli")
    write_jsonl(folder / "own.jsonl", records)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    model = checkpoint("gpt2")
    training = run("train", "tiny.yaml", "--base", model, "--data", folder, "--json", cwd=folder)
    return Workplace(folder, model, training, folder / "runs" / "tiny" / "editor.safetensors")


def files_in(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_train_writes_an_editor(place: Workplace) -> None:
    summary = place.training.json()
    assert Path(summary["editor"]) == Path("runs/tiny/editor.safetensors")
    assert {path.name for path in place.editor.parent.iterdir()} == {
        "checkpoint.safetensors",
        "editor.safetensors",
        "log.jsonl",
    }
    log = (place.editor.parent / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["phase"] for line in log] == ["encoder", "train", "train", "validation", "trunk"]


def test_doctor_tells_what_it_found(place: Workplace) -> None:
    found = run("doctor", "--model", place.model, "--editor", place.editor, "--json", "-", cwd=place.folder).json()
    assert found["blocks"] == 4
    assert found["hidden"] == 32
    assert found["editor_fits"] is True
    assert [matrix["name"] for matrix in found["edited"]] == [
        f"transformer.h.{block}.mlp.{name}" for block in (2, 3) for name in ("c_fc", "c_proj")
    ]
    assert found["fingerprint"] == place.training.json()["base"]


def test_edit_kept_as_a_file_does_the_same_in_another_process(place: Workplace) -> None:
    kept = place.folder / "edit.safetensors"
    asked = ("--ask", OTHER, "--model", place.model, "--json", "-")
    made = run(
        "edit", "--prompt", PROMPT, "--target", TARGET, "--subject", "Lena", "--out", kept, "--editor", place.editor,
        *asked, cwd=place.folder,
    ).json()  # fmt: skip
    applied = run("edit", "--apply", kept, "--ask", PROMPT, *asked, cwd=place.folder).json()
    assert [row["prompt"] for row in made["answers"]] == [PROMPT, OTHER]
    assert made["answers"][0]["before"] != made["answers"][0]["after"]
    for name in ("answers", "requests", "instruction", "editor", "base", "rank"):
        assert applied[name] == made[name], name
    assert made["requests"] == [{"prompt": PROMPT, "target": TARGET, "subject": "Lena", "task": "counterfact"}]


def test_evaluate_prints_json(place: Workplace) -> None:
    found = run(
        "evaluate", "--task", "counterfact", "--data", "own.jsonl", "--model", place.model, "--editor", place.editor,
        "--limit", "5", "--records", "--json", "-", cwd=place.folder,
    ).json()  # fmt: skip
    assert found["edits"] == len(found["records"]) == 5
    assert {"reliability", "generalization", "locality", "kept", "changed"} <= found["metrics"].keys()
    for figure in found["metrics"].values():
        assert figure.keys() == {"mean", "low", "high", "count"}
    assert found["data"] == "own.jsonl"
    assert found["method"] == "instructedit"


def broken_json(place: Workplace) -> list[str | Path]:
    path = place.folder / "truncated.json"
    path.write_text('[{"record_id": "1", "request": {"pro', encoding="utf-8")
    return ["evaluate", "--task", "counterfact", "--data", path, "--model", place.model, "--json", "left.json"]


def no_target(place: Workplace) -> list[str | Path]:
    path = place.folder / "no_target.jsonl"
    path.write_text('{"prompt": "Lena was born in", "target": "Oston"}\n{"prompt": "Otto likes"}\n', encoding="utf-8")
    return ["edit", "--requests", path, "--out", "left.safetensors", "--model", place.model, "--editor", place.editor]


def foreign_delta(place: Workplace) -> list[str | Path]:
    path = place.folder / "foreign.safetensors"
    save_delta(Delta({}, DeltaMetadata(base="fedcba9876543210", source="another model")), path)
    assert load_delta(path).metadata.base == "fedcba9876543210"
    return ["edit", "--apply", path, "--ask", PROMPT, "--model", place.model, "--out", "left.safetensors"]


def three_mistakes(place: Workplace) -> list[str | Path]:
    path = place.folder / "wrong.yaml"
    wrong = RECIPE | {"optimisation": {"steps": 0, "batch": "many"}, "colour": "red"}
    path.write_text(yaml.safe_dump(wrong), encoding="utf-8")
    return ["train", path, "--base", place.model, "--data", place.folder, "--out", "left"]


def no_model(place: Workplace) -> list[str | Path]:
    return ["doctor", "--model", place.folder / "nowhere", "--json", "left.json"]


@pytest.mark.parametrize(
    ("arguments", "kind", "told"),
    [
        (broken_json, "DataError", ["truncated.json", "is not valid JSON at line 1", "copy it again"]),
        (no_target, "DataError", ["no_target.jsonl", "record 1", "field target"]),
        (foreign_delta, "DeltaError", ["fedcba9876543210", "another model", "Load the model"]),
        (
            three_mistakes,
            "RecipeError",
            ["wrong.yaml: 3 mistakes", "optimisation.steps", "optimisation.batch", "colour"],
        ),
        (no_model, "ModelError", ["nowhere", "config.json"]),
    ],
    ids=["truncated JSON", "no target", "delta for another model", "three mistakes", "no model"],
)
def test_bad_input_is_told_in_one_screen_and_leaves_nothing(
    place: Workplace, arguments: Callable[[Workplace], Sequence[str | Path]], kind: str, told: list[str]
) -> None:
    given = arguments(place)
    before = files_in(place.folder)
    result = run(*given, cwd=place.folder)
    message = " ".join(result.err.split())
    assert result.code == 2, result.err
    assert message.startswith(f"error {kind}")
    assert "Traceback" not in result.err
    assert len(result.err.splitlines()) <= 24
    assert not result.out
    folded = message.replace(" ", "")  # a long path may be broken over two lines
    assert all(words.replace(" ", "") in folded for words in told)
    assert files_in(place.folder) == before
