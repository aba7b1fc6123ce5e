"""Editing directions: numbers with a known answer, and the command on a tiny model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from instructedit.analysis.directions import directions, explained, separability
from instructedit.analysis.report import LabelledEditor, reliability_correlation
from instructedit.editors.ft import ConstrainedFineTuning, FtConfig
from instructedit.editors.gradient import create_editor, editor_config
from instructedit.editors.incontext import InContext, InContextConfig
from instructedit.editors.mend import Mend
from instructedit.errors import DataError, EditorError
from instructedit.models.language_model import LanguageModel
from instructedit.records import EditRecord, EditRequest


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def clouds(apart: float, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Thirty directions of each of two tasks; ``apart`` times as far from each other as they are wide."""
    rng = np.random.default_rng(seed)
    centres = np.eye(12)[:2] * apart
    rows = np.concatenate([centre + 0.3 * rng.standard_normal((30, 12)) for centre in centres])
    return unit(rows), ["a"] * 30 + ["b"] * 30


def test_separated_tasks_have_a_high_score() -> None:
    far, near = separability(*clouds(20.0)), separability(*clouds(0.0))
    assert far.silhouette.mean > 0.9
    assert far.probe.mean == 1.0
    assert abs(near.silhouette.mean) < 0.1
    assert near.probe.mean < 0.75
    assert near.silhouette.low <= near.silhouette.mean <= near.silhouette.high


def test_angles_between_subspaces() -> None:
    """Two tasks in orthogonal planes are 90 degrees apart, two in the same plane 0."""
    rng = np.random.default_rng(0)
    plane = rng.standard_normal((30, 4))
    nothing = np.zeros_like(plane)
    labels = ["a"] * 30 + ["b"] * 30
    other = rng.standard_normal((30, 4))
    across = np.concatenate([np.hstack([plane, nothing]), np.hstack([nothing, other])])
    assert separability(unit(across), labels).angle == pytest.approx(90, abs=1e-3)
    same = np.concatenate([np.hstack([plane, nothing]), np.hstack([other, nothing])])
    assert separability(unit(same), labels).angle == pytest.approx(0, abs=1e-3)


def test_variance_is_split_between_instruction_and_edit() -> None:
    edits, instructions = np.array([[1.0, 0], [-1, 0], [0, 0]]), np.array([[0, 2.0], [0, -2]])
    added = {str(index): edits + instruction for index, instruction in enumerate(instructions)}
    shares = explained(added)
    # Edits: 2 instructions x (1 + 1) = 4; instructions: 3 edits x (4 + 4) = 24.
    assert shares["edit"] == pytest.approx(4 / 28)
    assert shares["instruction"] == pytest.approx(24 / 28)
    assert shares["both"] == pytest.approx(0, abs=1e-9)
    unread = explained({"a": edits, "b": edits})
    assert unread == pytest.approx({"instruction": 0.0, "edit": 1.0, "both": 0.0})
    assert explained({"a": edits * 0, "b": edits * 0}) == {"instruction": 0.0, "edit": 0.0, "both": 0.0}


def test_directions_are_unit_vectors_of_every_matrix(
    gpt2: LanguageModel, new_editor: Callable[..., Mend], requests_: list[EditRequest]
) -> None:
    editor = new_editor(gpt2)
    found = directions(editor, gpt2, requests_, [None] * len(requests_), batch=2)
    assert list(found) == [matrix.name for matrix in editor.matrices]
    for matrix in editor.matrices:
        assert found[matrix.name]["u"].shape == (len(requests_), matrix.inputs)
        assert found[matrix.name]["delta"].shape == (len(requests_), matrix.outputs)
        for vectors in found[matrix.name].values():
            np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    whole = directions(editor, gpt2, requests_, [None] * len(requests_))
    for name, sides in found.items():
        for side, vectors in sides.items():
            np.testing.assert_allclose(vectors, whole[name][side], atol=1e-4)


def test_a_dense_change_has_the_directions_of_its_columns(gpt2: LanguageModel, requests_: list[EditRequest]) -> None:
    editor = ConstrainedFineTuning.create(FtConfig(), gpt2)
    (sides,) = directions(editor, gpt2, requests_, [None] * 3).values()
    (factor,) = editor.edit(gpt2, requests_, [None] * 3).factors.values()
    changes = factor.change.double().numpy()
    np.testing.assert_allclose(sides["u"], unit(changes.sum(-1)), atol=1e-5)
    np.testing.assert_allclose(sides["delta"], unit(np.linalg.norm(changes, axis=1)), atol=1e-5)


def test_only_an_editor_that_reads_is_moved_by_the_instruction(gpt2: LanguageModel, records: list[EditRecord]) -> None:
    requests = [record.request for record in records]
    shares = {}
    for name in ("mend", "instructedit"):
        editor = create_editor(editor_config({"name": name, "blocks": 2, "rank": 8, "step_size": 0.1}), gpt2)
        for parameter in editor.parameters():
            parameter.data += 0.02 * parameter.data.new_ones(parameter.shape)  # away from the neutral start
        told = {
            text: directions(editor, gpt2, requests, [text] * len(requests)) for text in ("Only this.", "All of them.")
        }
        matrix = editor.matrices[-1].name
        shares[name] = explained({text: found[matrix]["u"] for text, found in told.items()})["instruction"]
    assert shares["mend"] == 0
    assert shares["instructedit"] > 0


def test_edits_that_change_no_weights_have_no_directions(gpt2: LanguageModel, requests_: list[EditRequest]) -> None:
    with pytest.raises(EditorError, match="does not change weights"):
        directions(InContext.create(InContextConfig(), gpt2), gpt2, requests_, [None] * len(requests_))


def test_editors_are_named_on_the_command_line() -> None:
    tasks = ("zsre", "recent", "counterfact")
    assert LabelledEditor.parse("ours=a.safetensors", tasks).file("zsre") == "a.safetensors"
    single = LabelledEditor.parse("single=zsre:a.safetensors,recent:b.safetensors", tasks)
    assert (single.file("recent"), single.file("counterfact")) == ("b.safetensors", None)
    with pytest.raises(DataError, match="expected label=file"):
        LabelledEditor.parse("a.safetensors", tasks)
    for wrong in ("single=zrse:a.safetensors,recent:b.safetensors", "single=zsre:a.safetensors"):
        with pytest.raises(DataError, match="at least two of zsre, recent, counterfact"):
            LabelledEditor.parse(wrong, tasks)


def test_rank_correlation_with_reliability() -> None:
    rows = [
        {"editor": name, "side": side, "silhouette": {"mean": value}}
        for side, values in (("u", (0.1, 0.2, 0.3)), ("delta", (0.3, 0.2, 0.1)))
        for name, value in zip("abc", values, strict=True)
    ]
    found = reliability_correlation(rows, {"a": 0.5, "b": 0.7, "c": 0.9})
    assert found is not None
    assert (found["u"]["rho"], found["delta"]["rho"]) == (1.0, -1.0)
    assert reliability_correlation(rows, {"a": 0.5}) is None
