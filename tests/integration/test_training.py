"""Meta-training on a tiny GPT-2: resuming, stages, what is held out, and the objective."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from instructedit.editors.mend import Mend, MendConfig
from instructedit.editors.saving import load_trained_editor
from instructedit.errors import CheckpointError, DataError, EditorError
from instructedit.models.language_model import LanguageModel, load_language_model
from instructedit.models.text import pad
from instructedit.records import EditRecord, EditRequest, Probe, ProbeKind
from instructedit.storage.checkpoints import load_checkpoint
from instructedit.training import loop
from instructedit.training.data import read_sources
from instructedit.training.log import LOG
from instructedit.training.loop import CHECKPOINT, EDITOR, train
from instructedit.training.mixture import Example, WeightedTarget
from instructedit.training.objective import compute_loss, loss_and_backward
from instructedit.training.progress import Report
from instructedit.training.recipe import Objective, Recipe, TrunkCacheSettings, parse_recipe
from instructedit.training.recipe_file import load_stages, parse_stages
from instructedit.training.schedule import learning_rate_factor
from instructedit.training.stages import train_stages

FILE = "own.jsonl"
TALK = "talk.jsonl"
PLAIN = {"conditioning": "none"}


class KilledError(Exception):
    """Stands for a process that dies."""


@pytest.fixture
def data(
    tmp_path: Path,
    records: list[EditRecord],
    opinions: list[EditRecord],
    write_jsonl: Callable[[Path, list[EditRecord]], Path],
) -> Path:
    """A data folder with one file of facts and one of opinions."""
    write_jsonl(tmp_path / FILE, records)
    write_jsonl(tmp_path / TALK, opinions)
    return tmp_path


def recipe(steps: int = 3, editor: dict[str, Any] | None = None, **optimisation: Any) -> Recipe:
    return parse_recipe(
        {
            "editor": {"blocks": 2, "rank": 8, "step_size": 0.1} | (editor or {"embedding_dim": 8}),
            "tasks": [
                {"task": "counterfact", "files": [FILE]},
                {"task": "rename", "files": [FILE]},
                {"task": "convsent", "files": [TALK], "weight": 2.0},
            ],
            "encoder_warmup": {"steps": 3, "batch": 4},
            "optimisation": {"steps": steps, "batch": 3, "warmup_steps": 2, "validation_edits": 2} | optimisation,
        }
    )


def log_of(folder: Path, *phases: str) -> list[dict[str, Any]]:
    """The log's entries without the clock, and without the trunk cache's account, which starts anew with a run."""
    entries = [json.loads(line) for line in (folder / LOG).read_text(encoding="utf-8").splitlines()]
    entries = [e for e in entries if (e["phase"] in phases if phases else e["phase"] != "trunk")]
    return [{k: v for k, v in e.items() if k not in {"seconds", "peak_bytes"}} for e in entries]


def dies_at(step: int) -> Callable[[Report], None]:
    def report(found: Report) -> None:
        if found.phase == "train" and found.step == step:
            raise KilledError

    return report


@pytest.mark.parametrize("warmup", [{"freeze": True}, {"freeze": False}], ids=str)
def test_killed_and_resumed_run_is_the_unbroken_one(gpt2: LanguageModel, data: Path, warmup: dict[str, bool]) -> None:
    wanted = recipe(12, checkpoint_every=4, validate_every=6)
    wanted = wanted.model_copy(update={"encoder_warmup": wanted.encoder_warmup.model_copy(update=warmup)})
    whole, broken = data / "whole", data / "broken"
    train(wanted, gpt2, whole, data)
    with pytest.raises(KilledError):
        train(wanted, gpt2, broken, data, dies_at(7))
    assert [entry["step"] for entry in log_of(broken, "train")] == list(range(7))
    (broken / LOG).open("a").write('{"phase": "train", "step": 7, "lo')  # the line that was being written
    steps: list[int] = []
    train(wanted, gpt2, broken, data, lambda found: steps.append(found.step) if found.phase == "train" else None)
    assert steps == list(range(5, 13))
    assert log_of(broken) == log_of(whole)
    lines = [json.loads(line) for line in (broken / LOG).read_text().splitlines()]
    seconds = [line["seconds"] for line in lines if line["phase"] == "train"]
    assert seconds == sorted(seconds)
    assert seconds[-1] > 0
    assert [entry["step"] for entry in log_of(whole, "train")] == list(range(12))
    first, second = (load_file(folder / EDITOR) for folder in (whole, broken))
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def staged(steps: int, *changes: dict[str, Any]) -> list[Recipe]:
    return parse_stages(
        recipe(steps, checkpoint_every=2, validate_every=4).model_dump(mode="json") | {"stages": list(changes)}
    )


def test_stages_are_resumed_wherever_they_were_killed(gpt2: LanguageModel, data: Path) -> None:
    stages = staged(4, {}, {"optimisation": {"learning_rate": 1e-3}}, {"seed": 3})
    train_stages(stages, gpt2, data / "whole", data)
    for kill in (2, 7, 12):  # in the first stage, in the second, and at the end of the last
        steps = itertools.count(1)

        def dies(report: Report, steps: Iterator[int] = steps, kill: int = kill) -> None:
            if report.phase == "train" and next(steps) == kill:
                raise KilledError

        out = data / f"killed-{kill}"
        with pytest.raises(KilledError):
            train_stages(stages, gpt2, out, data, dies)
        assert not (out / EDITOR).exists()
        train_stages(stages, gpt2, out, data)
        assert log_of(out) == log_of(data / "whole")
        assert (out / EDITOR).read_bytes() == (data / "whole" / EDITOR).read_bytes()
    train_stages(stages, gpt2, data / "whole", data, lambda report: pytest.fail(f"trained again: {report}"))
    entries = log_of(data / "whole")
    assert [entry["phase"] for entry in entries].count("encoder") == 1, "the encoder is warmed up once"
    assert [entry["step"] for entry in entries if entry["phase"] == "train"] == [*range(4)] * 3


def test_a_stage_starts_from_the_editor_of_the_one_before(gpt2: LanguageModel, data: Path) -> None:
    stages = staged(2, {}, {"seed": 3})
    train_stages(stages, gpt2, data / "staged", data)
    train(stages[0], gpt2, data / "one", data)
    train(stages[1].model_copy(update={"start_from": str(data / "one" / EDITOR)}), gpt2, data / "two", data)
    assert (data / "staged" / EDITOR).read_bytes() == (data / "two" / EDITOR).read_bytes()
    with pytest.raises(CheckpointError, match=r"another recipe \(start_from: .* there, .* now\)"):
        train(stages[1].model_copy(update={"start_from": str(data / "two" / EDITOR)}), gpt2, data / "two", data)


def test_a_later_stage_may_add_a_null_space(gpt2: LanguageModel, data: Path) -> None:
    first, second = staged(3, {}, {"editor": {"null_space": 2}, "optimisation": {"learning_rate": 1e-9}})
    train(first, gpt2, data / "one", data)
    second = second.model_copy(update={"start_from": str(data / "one" / EDITOR)})
    train(second, gpt2, data / "two", data)
    before, after = (load_file(data / folder / EDITOR) for folder in ("one", "two"))
    assert after.keys() - before.keys() == {"null_space_logit", "null_space_condition.weight"}
    weights = [name for name in before if "norm_" not in name and name != "log_lr"]
    for name in weights:
        torch.testing.assert_close(after[name], before[name], atol=1e-6, rtol=1e-5)


def test_another_seed_is_another_run(gpt2: LanguageModel, data: Path) -> None:
    for seed in (0, 1):
        train(recipe().model_copy(update={"seed": seed}), gpt2, data / str(seed), data)
    assert log_of(data / "0", "train") != log_of(data / "1", "train")


def test_finished_run_is_not_trained_again(gpt2: LanguageModel, data: Path) -> None:
    train(recipe(), gpt2, data / "out", data)
    before = {path.name: path.read_bytes() for path in (data / "out").iterdir()}
    train(recipe(), gpt2, data / "out", data, lambda found: pytest.fail(f"trained on: {found}"))
    assert {path.name: path.read_bytes() for path in (data / "out").iterdir()} == before


@pytest.fixture
def never_better(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every validation after the first be worse than it."""
    losses = itertools.count(1)
    monkeypatch.setattr(loop, "validate", lambda *args: {"loss": float(next(losses)), "tasks": {}, "norms": None})


@pytest.mark.usefixtures("never_better")
def test_run_stops_when_its_patience_is_used_up(gpt2: LanguageModel, data: Path) -> None:
    train(recipe(12, PLAIN, validate_every=2, patience=2), gpt2, data / "out", data)
    assert [entry["step"] for entry in log_of(data / "out", "validation")] == [2, 4, 6]
    assert log_of(data / "out", "train")[-1]["step"] == 5


@pytest.mark.usefixtures("never_better")
def test_run_that_stopped_early_is_not_trained_again(gpt2: LanguageModel, data: Path) -> None:
    wanted = recipe(12, PLAIN, validate_every=2, patience=2)
    train(wanted, gpt2, data / "out", data)
    before = log_of(data / "out")
    train(wanted, gpt2, data / "out", data)
    assert log_of(data / "out") == before


def test_checkpoint_of_another_recipe_is_refused(gpt2: LanguageModel, data: Path) -> None:
    train(recipe(), gpt2, data / "out", data)
    before = (data / "out" / CHECKPOINT).read_bytes()
    with pytest.raises(
        CheckpointError, match=r"another recipe \(optimisation.learning_rate: 0.0005 there, 0.0001 now\)"
    ):
        train(recipe(learning_rate=1e-4), gpt2, data / "out", data)
    assert (data / "out" / CHECKPOINT).read_bytes() == before


def test_damaged_checkpoint_is_refused(gpt2: LanguageModel, data: Path) -> None:
    editor = train(recipe(), gpt2, data / "out", data)
    path = data / "out" / CHECKPOINT
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        load_checkpoint(path, editor, [torch.optim.Adam(editor.parameters())], {})


@pytest.mark.parametrize(
    "editor",
    [
        pytest.param(
            {"name": "mend"},
        ),
        PLAIN,
        {"conditioning": "prefix"},
        {"conditioning": "hypernetwork"},
        {"conditioning": "both"},
        {"encoder": "base"},
    ],
    ids=str,
)
def test_every_editor_trains(gpt2: LanguageModel, data: Path, editor: dict[str, str]) -> None:
    trained = train(recipe(3, editor), gpt2, data / "out", data)
    losses = [entry["loss"] for entry in log_of(data / "out", "train")]
    assert len(losses) == 3
    assert all(torch.isfinite(torch.tensor(losses)))
    assert not trained.training
    assert (trained.log_lr.exp() - 0.1).abs().max() > 1e-5
    assert all(float(norm) > 2 for name, norm in trained.named_buffers() if name.endswith("count"))
    assert all(parameter.grad is None for parameter in gpt2.model.parameters())


@pytest.mark.parametrize("scope", ["step", "run"])
def test_trunk_cache_changes_no_loss(gpt2: LanguageModel, data: Path, scope: str) -> None:
    plain = recipe(8)
    plain = plain.model_copy(update={"trunk_cache": TrunkCacheSettings(memory=0)})
    folder = str(data / "trunks") if scope == "run" else None
    remembering = plain.model_copy(update={"trunk_cache": TrunkCacheSettings(scope=scope, folder=folder)})
    train(plain, gpt2, data / "plain", data)
    train(remembering, gpt2, data / "remembering", data)
    losses = [[entry["loss"] for entry in log_of(data / out, "train")] for out in ("plain", "remembering")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    (account,) = log_of(data / "remembering", "trunk")
    assert account["hit_rate"] > (0.5 if scope == "run" else 0.1)
    if scope == "run":
        train(remembering, gpt2, data / "again", data)
        (account,) = log_of(data / "again", "trunk")
        assert account["hit_rate"] == 1.0, "the folder outlives the run"


def test_trained_editor_can_be_loaded(gpt2: LanguageModel, data: Path, requests_: list[EditRequest]) -> None:
    train(recipe(), gpt2, data / "out", data)
    loaded = load_trained_editor(data / "out" / EDITOR, gpt2)
    assert loaded.config == recipe().editor
    assert len(loaded.edit(gpt2, requests_, ["Task: Edit\nDescription: x"] * 3)) == 3


def test_loss_falls_on_what_is_trained(gpt2: LanguageModel, data: Path) -> None:
    wanted = recipe(40, PLAIN, batch=6, learning_rate=5e-3, step_size_learning_rate=5e-2)
    wanted = wanted.model_copy(update={"tasks": wanted.tasks[:1]})
    train(wanted, gpt2, data / "out", data)
    losses = [entry["loss"] for entry in log_of(data / "out", "train")]
    assert sum(losses[-8:]) < 0.8 * sum(losses[:8])


def test_diverged_training_is_reported(gpt2: LanguageModel, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = loop.loss_and_backward

    def broken(editor: Mend, *args: Any, **options: Any) -> Any:
        losses = real(editor, *args, **options)
        assert editor.log_lr.grad is not None
        editor.log_lr.grad.fill_(float("nan"))
        return losses

    monkeypatch.setattr(loop, "loss_and_backward", broken)
    with pytest.raises(EditorError, match="step 0: the gradient is not finite"):
        train(recipe(), gpt2, data / "out", data)


def test_accumulating_the_same_batch_changes_nothing(
    gpt2: LanguageModel, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop.draw_examples
    monkeypatch.setattr(loop, "draw_examples", lambda *args: real(*args[:-1], random.Random(0)))
    norms = []
    for accumulate in (1, 2):
        out = data / str(accumulate)
        train(recipe(1, PLAIN, accumulate=accumulate), gpt2, out, data)
        norms.append(log_of(out, "train")[0]["gradient_norm"])
    # The running statistics have seen the batch twice, hence not exactly.
    assert norms[1] == pytest.approx(norms[0], rel=0.2)


def test_schedule_rises_stays_and_falls() -> None:
    factors = [learning_rate_factor(step, 100, warmup_steps=10, cooldown_fraction=0.2) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9:81] == [1.0] * 72
    assert factors[90] == pytest.approx(0.5)
    assert factors[99] == pytest.approx(0.05)


def test_held_out_task_is_refused(gpt2: LanguageModel, data: Path) -> None:
    wanted = parse_recipe({"tasks": [{"task": "zsre", "files": [FILE]}]})
    with pytest.raises(DataError, match="task zsre is held out"):
        train(wanted, gpt2, data / "out", data)
    assert not (data / "out").exists()


def test_missing_training_file_is_reported(gpt2: LanguageModel, data: Path) -> None:
    wanted = parse_recipe({"tasks": [{"task": "recent", "files": ["nowhere.json"]}]})
    with pytest.raises(DataError, match=r"nowhere\.json: cannot be read"):
        train(wanted, gpt2, data / "out", data)


def test_file_too_small_to_validate_on_is_reported(
    gpt2: LanguageModel,
    data: Path,
    records: list[EditRecord],
    write_jsonl: Callable[[Path, list[EditRecord]], Path],
) -> None:
    write_jsonl(data / FILE, records[:1])
    with pytest.raises(DataError, match="only one subject"):
        train(recipe(1, PLAIN), gpt2, data / "out", data)


def test_validation_loss_is_that_of_the_tasks_by_their_shares(gpt2: LanguageModel, data: Path) -> None:
    wanted = recipe(2, validate_every=2)
    weighted = tuple(mix.model_copy(update={"weight": 3.0 if i == 0 else 1.0}) for i, mix in enumerate(wanted.tasks))
    wanted = wanted.model_copy(update={"tasks": weighted, "scope_template_share": 0.9})
    train(wanted, gpt2, data / "out", data)
    [entry] = log_of(data / "out", "validation")
    shares = [mix.weight / sum(mix.weight for mix in weighted) for mix in weighted]
    weights = wanted.objective
    expected = sum(
        share * (weights.edit_weight * part["edit"] + weights.locality_weight * part["locality"])
        for share, part in zip(shares, entry["tasks"].values(), strict=True)
    )
    assert entry["loss"] == pytest.approx(expected, abs=2e-4)


def test_sources_hold_the_same_subjects_out_of_all_tasks(data: Path) -> None:
    training, validation = read_sources(recipe(), data)
    held = {r.request.subject for source in validation for r in source.pool.records}
    assert held
    assert not held & {r.request.subject for source in training for r in source.pool.records}
    assert [source.task.name for source in training] == ["counterfact", "rename", "convsent"]


@pytest.mark.parametrize("worst", [0.0, 0.4])
@pytest.mark.parametrize("first", [1.0, 3.0])
@pytest.mark.parametrize("average", ["prompt", "token"])
def test_objective_is_the_sum_over_single_rows(gpt2: LanguageModel, average: str, first: float, worst: float) -> None:
    """A plain computation, one row and one edit at a time, gives the same loss and gradient."""
    editor = Mend.create(MendConfig(blocks=2, rank=4, step_size=1.0), gpt2).eval()
    weights = {"locality_weight": 0.7, "edit_weight": 1.3, "first_token_weight": first}
    first_kept = 2 * first if average == "prompt" else 1.0
    weights["locality_first_token_weight"] = first_kept
    objective = Objective.model_validate({"locality_average": average, **weights})
    examples = [
        Example(
            "a",
            EditRequest(prompt="Lena was born in", target="Oston"),
            "",
            likelihood_targets=(
                WeightedTarget("Lena was born in", "Oston", 1.0),
                WeightedTarget("The birthplace of Lena is", "Oston", 0.5),
            ),
            unlikelihood_targets=(
                WeightedTarget("Lena was born in", "some other place", 0.1),
                WeightedTarget("Lena was born in", "Oston", 0.3),
            ),
            locality_targets=(("Otto was born in", "Maravel"), ("Why", "not, after all?")),
            worst_token=worst,
        ),
        Example(
            "b",
            EditRequest(prompt="Otto likes", target="old garden gnomes"),
            "",
            likelihood_targets=(WeightedTarget("Otto likes", "old garden gnomes", 1.0),),
            unlikelihood_targets=(),
            locality_targets=(("The sky is", "blue"),),
            worst_token=worst,
        ),
    ]
    made, deltas = (editor(gpt2, [item.request for item in examples], [None, None]) for _ in range(2))
    found = loss_and_backward(editor, gpt2, made, examples, objective, scale=0.5)
    gradient = editor.log_lr.grad
    assert gradient is not None
    assert compute_loss(editor, gpt2, deltas, examples, objective) == found

    def logits(edit: int | None, prompt: str, answer: str) -> tuple[torch.Tensor, torch.Tensor]:
        batch = pad([gpt2.text.encode_pair(prompt, answer)], gpt2.text.pad_id)
        if edit is None:
            return gpt2.split(0).full(batch), batch.labels
        with deltas.attached(gpt2, torch.tensor([edit])):
            return gpt2.split(0).full(batch), batch.labels

    edit_losses, divergences, likely = [], [], []
    for edit, item in enumerate(examples):
        rise = []
        for want in item.likelihood_targets:
            losses = functional.cross_entropy(*logits(edit, want.prompt, want.answer), reduction="none")
            counts = torch.tensor([first] + [1.0] * (len(losses) - 1))
            rise.append((want.weight, (1 - worst) * (losses * counts).sum() / counts.sum() + worst * losses.max()))
        loss = sum(weight * value for weight, value in rise) / sum(weight for weight, _ in rise)
        for want in item.unlikelihood_targets:
            after, labels = logits(edit, want.prompt, want.answer)
            p = after.softmax(-1).gather(1, labels[:, None])
            likely.append(p.max().item())
            loss = loss - want.weight * torch.log(1 - p).mean()
        edit_losses.append(loss)
        rows = []
        for prompt, answer in item.locality_targets:
            after, before = (logits(which, prompt, answer)[0].log_softmax(-1) for which in (edit, None))
            rows.append((before.exp() * (before - after)).sum(-1))
        divergences.append(rows)
    if average == "prompt":

        def mean(row: torch.Tensor) -> torch.Tensor:
            counts = torch.tensor([first_kept] + [1.0] * (len(row) - 1))
            return (1 - worst) * (row * counts).sum() / counts.sum() + worst * row.max()

        locality = torch.stack([torch.stack([mean(row) for row in rows]).mean() for rows in divergences]).mean()
    else:
        rows = [(1 - worst) * row + worst * row.max() for rows in divergences for row in rows]
        locality = torch.cat(rows).mean()
    expected = 1.3 * torch.stack(edit_losses).mean() + 0.7 * locality
    assert found.total == pytest.approx(expected.item(), rel=1e-4)
    assert max(likely) > 0.2
    assert found.mean_edit == pytest.approx(torch.stack(edit_losses).mean().item(), rel=1e-4)
    assert average == "token" or found.mean_locality == pytest.approx(locality.item(), rel=1e-3)
    assert found.edit == pytest.approx([loss.item() for loss in edit_losses], rel=1e-4)
    assert set(found.by_task()) == {"a", "b"}
    torch.testing.assert_close(gradient, 0.5 * torch.autograd.grad(expected, editor.log_lr)[0], rtol=1e-3, atol=1e-5)
    assert gradient.abs().max() > 1e-4


@pytest.mark.parametrize(("name", "family"), [("gpt2-xl", "gpt2"), ("llama-2-7b", "llama"), ("qwen3-8b", "qwen3")])
def test_recipes_for_large_models_take_ten_steps(
    name: str,
    family: str,
    checkpoint: Callable[[str], Path],
    data: Path,
    records: list[EditRecord],
    write_jsonl: Callable[[Path, list[EditRecord]], Path],
) -> None:
    """Everything as the recipe says but sizes, and data of our own, with something for every scope."""
    kinds = (ProbeKind.SUBJECT_ALIAS,)
    more = tuple(Probe(kind=kind, prompt=f"By the way, {kind}:", answers=("Oston",)) for kind in kinds)
    write_jsonl(data / FILE, [record.model_copy(update={"probes": record.probes + more}) for record in records])
    [stage] = load_stages(Path(__file__).parents[2] / "recipes" / f"{name}.yaml")
    raw = stage.model_dump(mode="json")
    own = recipe(10).model_dump(mode="json")
    assert raw["dtype"] == "bfloat16"
    small = {
        "tasks": [mix | {"files": [TALK if mix["task"] == "convsent" else FILE]} for mix in raw["tasks"]],
        "editor": raw["editor"] | {"rank": 8, "embedding_dim": 8},
        "encoder_warmup": own["encoder_warmup"],
        "optimisation": raw["optimisation"] | {"steps": 10, "warmup_steps": 2, "batch": 4, "validation_edits": 2},
    }
    model = load_language_model(checkpoint(family), dtype=raw["dtype"])
    train(parse_recipe(raw | small), model, data / "run", data)
    losses = [entry["loss"] for entry in log_of(data / "run", "train")]
    assert len(losses) == 10
    assert all(math.isfinite(loss) for loss in losses)
    assert load_trained_editor(data / "run" / EDITOR, model).matrices == model.structure.last_mlps(3)


def test_closed_answers_are_learned_with_their_full_stop(gpt2: LanguageModel, new_editor: Callable[..., Mend]) -> None:
    """What rises and what stays goes on to the full stop; what falls does not."""
    request = EditRequest(prompt="Lena was born in", target="Oston")
    parts = ((WeightedTarget("Lena was born in", "Oston", 1.0),), (WeightedTarget("Lena was born in", "Maravel", 1.0),))

    def losses(mark: str, append_period: bool) -> tuple[float, float]:
        rise, fall = parts
        rise = tuple(WeightedTarget(w.prompt, w.answer + mark, w.weight) for w in rise)
        item = Example("counterfact", request, "", rise, fall, (("Otto likes", "rivers" + mark),))
        editor = new_editor(gpt2, name="mend", append_period=append_period)
        found = compute_loss(editor, gpt2, editor(gpt2, [request], [None]), [item], Objective())
        return found.mean_edit, found.mean_locality

    assert losses("", append_period=True) == losses(".", append_period=True)
    assert losses("", append_period=True) != losses("", append_period=False)
