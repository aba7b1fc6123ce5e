"""The command line on a tiny saved checkpoint, each command from its arguments to its output and files."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command import Result, environment, run, run_apart

from instructedit.deltas.delta import Delta, DeltaMetadata
from instructedit.deltas.factors import LowRank
from instructedit.deltas.saving import load_delta, save_delta
from instructedit.records import EditRecord

pytestmark = pytest.mark.xdist_group("cli")  # they share a trained editor

PROMPT, TARGET, OTHER = "Lena was born in", "Oston", "The harbour of Maravel is"
RECIPE: dict[str, Any] = {
    "editor": {"blocks": 2, "rank": 4, "embedding_dim": 4, "step_size": 1.0},
    "tasks": [{"task": "counterfact", "files": ["own.jsonl"]}],
    "encoder_warmup": {"steps": 2, "batch": 4},
    "optimisation": {"steps": 2, "batch": 2, "validation_edits": 2},
}


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
    training = run("train", "tiny.yaml", "--base", model, "--data", folder, "--json", "-", cwd=folder)
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


def test_doctor_prints_its_findings(place: Workplace) -> None:
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
        "edit", "--prompt", PROMPT, "--target", TARGET, "--subject", "Lena", "--task", "counterfact", "--out", kept,
        "--editor", place.editor, *asked, cwd=place.folder,
    ).json()  # fmt: skip
    applied = run_apart("edit", "--apply", kept, "--ask", PROMPT, *asked, cwd=place.folder).json()
    assert [row["prompt"] for row in made["answers"]] == [PROMPT, OTHER]
    assert made["answers"][0]["before"] != made["answers"][0]["after"]
    for name in ("answers", "requests", "instruction", "editor", "base", "rank"):
        assert applied[name] == made[name], name
    assert made["requests"] == [{"prompt": PROMPT, "target": TARGET, "subject": "Lena", "task": "counterfact"}]


def test_edit_without_a_task_prints_the_chosen_one(place: Workplace) -> None:
    edit = ("edit", "--prompt", PROMPT, "--target", TARGET, "--model", place.model, "--editor", place.editor)
    routed = run(*edit, "--json", "-", cwd=place.folder)
    assert "chosen for 'Lena was born in'" in routed.err
    assert routed.json()["requests"][0]["task"] in routed.err
    assert "chosen" not in run(*edit[:-1], "ft", "--json", "-", cwd=place.folder).err, "FT-L reads no instruction"
    free = run(*edit, "--instruction", "Only her, nobody else.", "--json", "-", cwd=place.folder)
    assert free.json()["instruction"] == "Task: Edit\nDescription: Only her, nobody else."
    assert "chosen" not in free.err


def test_an_instruction_that_is_not_read_is_neither_stored_nor_unmentioned(place: Workplace) -> None:
    options = ("--instruction", "Only her.", "--editor", "ft", "--model", place.model, "--json", "-")
    made = run("edit", "--prompt", PROMPT, "--target", TARGET, *options, cwd=place.folder)
    assert "ft does not read instructions" in made.err
    assert made.json()["instruction"] is None


def test_a_task_is_for_the_requests_that_name_none(place: Workplace) -> None:
    lines = [{"prompt": PROMPT, "target": TARGET}, {"prompt": OTHER, "target": TARGET, "task": "rename"}]
    path = place.folder / "tasks.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    made = run(
        "edit", "--requests", path, "--task", "this-fact", "--combine", "sum", "--model", place.model,
        "--editor", place.editor, "--json", "-", cwd=place.folder,
    ).json()  # fmt: skip
    assert [request["task"] for request in made["requests"]] == ["this-fact", "rename"]


def test_one_instruction_for_many_requests(place: Workplace) -> None:
    lines = [
        {"prompt": PROMPT, "target": TARGET},
        {"prompt": OTHER, "target": TARGET, "instruction": "This one alone."},
    ]
    path = place.folder / "many.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    found = run(
        "edit", "--requests", path, "--instruction", "Wherever it occurs.", "--model", place.model,
        "--editor", place.editor, "--json", "-", cwd=place.folder,
    ).json()  # fmt: skip
    assert [request["instruction"] for request in found["requests"]] == ["Wherever it occurs.", "This one alone."]


def optimize(place: Workplace, *more: str | Path) -> tuple[str | Path, ...]:
    return (
        "instructions", "optimize", "--task", "zsre", "--data", "own.jsonl", "--edits", "12", "--candidates", "8",
        "--model", place.model, "--editor", place.editor, "--json", "-", *more,
    )  # fmt: skip


def test_instructions_are_optimised_and_used(place: Workplace) -> None:
    templates = place.folder / "templates.yaml"
    found = run(*optimize(place, "--rounds", "2", "--out", templates), cwd=place.folder).json()
    assert found["tried"] >= 18
    assert found["rounds"] == 2
    shown = run(
        "instructions", "show", "--task", "zsre", "--template-file", templates, "--json", "-", cwd=place.folder
    ).json()
    assert shown["provenance"]["base"] == place.training.json()["base"]
    assert (len(shown["templates"]), len(shown["held_out_templates"])) == (9, 1)
    tried = run(
        "instructions", "score", "--task", "zsre", "--template-file", templates, "--data", "own.jsonl", "--edits", "3",
        "--model", place.model, "--editor", place.editor, "--json", "-", cwd=place.folder,
    ).json()  # fmt: skip
    assert {row["text"] for row in tried["rows"]} == {*shown["templates"], *shown["held_out_templates"]}
    made = run(
        "edit", "--prompt", PROMPT, "--target", TARGET, "--task", "zsre", "--template-file", templates,
        "--model", place.model, "--editor", place.editor, "--json", "-", cwd=place.folder,
    ).json()  # fmt: skip
    assert made["instruction"] == f"Task: {shown['name']}\nDescription: {shown['templates'][0]}"


def test_killed_optimisation_goes_on_and_tries_nothing_twice(place: Workplace) -> None:
    """SIGKILL, which no program can catch."""
    templates, trace = place.folder / "killed.yaml", place.folder / "killed.trace.jsonl"
    long = optimize(place, "--rounds", "60", "--patience", "60", "--out", templates)
    command = [sys.executable, "-m", "instructedit", *map(str, long)]
    with subprocess.Popen(
        command, cwd=place.folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            if trace.is_file() and '"event": "round"' in trace.read_text(encoding="utf-8"):
                break
            time.sleep(0.05)
        running.kill()
    assert not templates.exists()
    before = trace.read_text(encoding="utf-8").split("\n")[:-1]
    again = run(*optimize(place, "--rounds", "3", "--patience", "60", "--out", templates), cwd=place.folder)
    assert again.json()["rounds"] == 3
    after = trace.read_text(encoding="utf-8").splitlines()
    assert after[: len(before)] == before
    events = [json.loads(line) for line in after]
    scored = [(event["text"], event["start"], event["stop"]) for event in events if event["event"] == "score"]
    assert len(scored) == len(set(scored))


def test_generated_instructions_are_a_template_file(place: Workplace) -> None:
    templates = place.folder / "generated.yaml"
    done = run("instructions", "generate", "--task", "convsent", "--count", "6", "--out", templates, cwd=place.folder)
    assert done.code == 0
    shown = run(
        "instructions", "show", "--task", "convsent", "--template-file", templates, "--json", "-", cwd=place.folder
    ).json()
    assert all("[LABEL]" in text and "[TOPIC]" in text for text in shown["templates"])


def test_directions_are_written_with_pictures(place: Workplace) -> None:
    out = place.folder / "directions"
    done = run(
        "analyze", "directions", "--editor", f"ours={place.editor}", "--editor",
        f"one=counterfact:{place.editor},zsre:{place.editor}", "--task", "counterfact", "--task", "zsre",
        "--limit", "10", "--model", place.model, "--out", out, cwd=place.folder,
    )  # fmt: skip
    assert done.code == 0, done.err
    found = json.loads((out / "directions.json").read_text(encoding="utf-8"))
    assert {row["editor"] for row in found["summary"]} == {"ours", "one"}
    assert all(0 <= row["probe"]["mean"] <= 1 for row in found["rows"])
    assert "explained" in found["summary"][0]
    assert (out / "directions.md").read_text(encoding="utf-8").count("| ours |") == 2
    assert {path.name for path in out.glob("*.png")} == {"directions-u.png", "directions-delta.png"}


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
    factors = {"transformer.h.0.mlp.c_fc": LowRank(torch.ones(32, 1), torch.ones(1, 80))}
    save_delta(Delta(factors, DeltaMetadata(base="fedcba9876543210", source="another model")), path)
    assert load_delta(path).metadata.base == "fedcba9876543210"
    return ["edit", "--apply", path, "--ask", PROMPT, "--model", place.model, "--out", "left.safetensors"]


def three_mistakes(place: Workplace) -> list[str | Path]:
    path = place.folder / "wrong.yaml"
    wrong = RECIPE | {"optimisation": {"steps": 0, "batch": "many"}, "colour": "red"}
    path.write_text(yaml.safe_dump(wrong), encoding="utf-8")
    return ["train", path, "--base", place.model, "--data", place.folder, "--out", "left"]


def ignored(place: Workplace) -> list[str | Path]:
    return ["edit", "--requests", "own.jsonl", "--subject", "Lena", "--target", TARGET, "--out", "left.safetensors"]


def no_editor(place: Workplace) -> list[str | Path]:
    return ["evaluate", "--task", "rename", "--data", "own.jsonl", "--model", place.model, "--editor", "bundeled"]


def no_model(place: Workplace) -> list[str | Path]:
    return ["doctor", "--model", place.folder / "nowhere", "--json", "left.json"]


@pytest.mark.parametrize(
    ("arguments", "kind", "told"),
    [
        (broken_json, "DataError", ["truncated.json", "is not valid JSON at line 1", "copy it again"]),
        (no_target, "DataError", ["no_target.jsonl", "record 1", "field target"]),
        (foreign_delta, "DeltaError", ["fedcba9876543210", "another model", "Load that model"]),
        (
            three_mistakes,
            "RecipeError",
            ["wrong.yaml: 3 mistakes", "optimisation.steps", "optimisation.batch", "colour"],
        ),
        (no_model, "ModelError", ["nowhere", "config.json"]),
        (ignored, "DataError", ["--target, --subject cannot be given with --requests"]),
        (no_editor, "EditorError", ["bundeled", "Did you mean 'bundled'?", "Known: ", "bundled, ", "rome"]),
    ],
    ids=[
        "truncated JSON",
        "no target",
        "delta for another model",
        "three mistakes",
        "no model",
        "ignored option",
        "no editor",
    ],
)
def test_bad_input_is_reported_in_one_screen_and_leaves_nothing(
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
