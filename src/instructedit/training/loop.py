"""The meta-training loop."""

from __future__ import annotations

import json
import logging
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.accelerator import Accelerator

from instructedit.data import find_data
from instructedit.editors.files import create_editor, save_editor
from instructedit.editors.instructedit import InstructEdit
from instructedit.editors.mend import Mend
from instructedit.errors import DataError, EditorError
from instructedit.models.language_model import DTYPES, LanguageModel
from instructedit.records import EditRecord
from instructedit.tasks.pool import RecordPool
from instructedit.tasks.readers import read_records
from instructedit.tasks.task import load_task
from instructedit.training.checkpoints import Progress, load_checkpoint, save_checkpoint
from instructedit.training.mixture import Source, draw, shares, split_validation
from instructedit.training.objective import Losses, compute
from instructedit.training.recipe import Recipe
from instructedit.training.warmup import warm_up_encoder

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.safetensors"
LOG = "log.jsonl"
EDITOR = "editor.safetensors"


@dataclass(frozen=True)
class Report:
    """What a progress display shows after a step."""

    phase: str
    step: int
    steps: int
    values: dict[str, Any]


def read_sources(recipe: Recipe, data: Path) -> tuple[list[Source], list[Source]]:
    """Training and validation sources of a recipe.

    Raises:
        DataError: a file is missing or wrong, or a task is held out from training.
    """
    tasks = {mix.task: load_task(mix.task) for mix in recipe.tasks}
    read: dict[str, list[EditRecord]] = {}
    records: dict[str, list[EditRecord]] = {}
    for mix in recipe.tasks:
        task = tasks[mix.task]
        if task.held_out:
            raise DataError(f"task {task.name} is held out: no editor is trained on it", field="tasks")
        for name in mix.files:
            if name not in read:
                read[name] = read_records(data / name, skip_incomplete=True)
        records[mix.task] = [record for name in mix.files for record in read[name]]
    train, validation = split_validation(records, recipe.optimisation.validation_edits, recipe.seed)
    return (
        [Source(tasks[mix.task], RecordPool(train[mix.task]), mix.weight) for mix in recipe.tasks],
        [Source(tasks[mix.task], RecordPool(validation[mix.task]), mix.weight) for mix in recipe.tasks],
    )


def train(
    recipe: Recipe,
    language_model: LanguageModel,
    out: Path,
    data: Path | None = None,
    on_report: Callable[[Report], None] = lambda report: None,
) -> Mend:
    """Train an editor; go on from ``out``'s checkpoint if there is one.

    Args:
        recipe: what to train.
        language_model: the base model, frozen.
        out: folder for the log, the checkpoint and the finished editor.
        data: folder with the training files; default :func:`find_data`.
        on_report: called after every step and validation.

    Returns:
        The editor of the best validation loss.

    Raises:
        DataError: as :func:`read_sources`.
        EditorError: the loss is not finite, or the checkpoint is of another recipe.
    """
    opt = recipe.optimisation
    if opt.threads is not None:
        torch.set_num_threads(opt.threads)
    sources, validation = read_sources(recipe, data or find_data())
    weights = shares(sources, recipe.mixture, recipe.temperature)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    editor = create_editor(recipe.editor, language_model).to(language_model.device)
    checkpoint = out / CHECKPOINT
    settings = recipe.model_dump(mode="json")
    log = _Log(out / LOG, append=checkpoint.exists())
    encoder = editor.encoder if isinstance(editor, InstructEdit) else None
    if encoder is not None and recipe.encoder_warmup.freeze:
        encoder.requires_grad_(False)
    if encoder is not None and not checkpoint.exists() and recipe.encoder_warmup.steps:
        encoder.requires_grad_(True)
        total = recipe.encoder_warmup.steps
        accuracy = warm_up_encoder(
            encoder,
            language_model,
            [source.task for source in sources],
            recipe.encoder_warmup,
            recipe.wordings,
            recipe.seed,
            lambda step, loss: on_report(Report("encoder", step + 1, total, {"loss": loss})),
        )
        log.write({"phase": "encoder", "steps": total, "accuracy": round(accuracy, 4)})
    accelerator = Accelerator(cpu=language_model.device.type == "cpu", gradient_accumulation_steps=opt.accumulate)
    optimizer = _optimizer(editor, recipe)
    editor, optimizer = accelerator.prepare(editor, optimizer)
    progress = Progress(0, math.inf, 0)
    if checkpoint.exists():
        progress = load_checkpoint(checkpoint, accelerator.unwrap_model(editor), optimizer, settings)
        log.cut_after(progress.step)
        logger.info("resuming %s at step %d", out, progress.step)
    began = time.monotonic()
    for step in range(progress.step, opt.steps):
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * schedule(step, recipe)
        editor.train()
        if encoder is not None and recipe.encoder_warmup.freeze:
            encoder.eval()
        torch.manual_seed(recipe.seed * 1_000_003 + step)
        parts = []
        for part in range(opt.accumulate):
            rng = random.Random(f"{recipe.seed}-{step}-{part}")
            examples = draw(sources, weights, opt.batch, recipe.objective, recipe.wordings, rng)
            deltas = editor(language_model, [e.request for e in examples], [e.instruction for e in examples])
            losses = compute(accelerator.unwrap_model(editor), language_model, deltas, examples, recipe.objective)
            accelerator.backward(losses.total / opt.accumulate)
            parts.append(losses)
        norm = float(accelerator.clip_grad_norm_(editor.parameters(), opt.clip))
        if not math.isfinite(norm):
            raise EditorError(
                f"step {step}: the gradient is not finite. Lower optimisation.learning_rate or editor.step_size; the "
                f"last checkpoint stands in {checkpoint}"
            )
        optimizer.step()
        optimizer.zero_grad()
        entry = _entry(step, parts, norm, time.monotonic() - began)
        log.write(entry)
        on_report(Report("train", step + 1, opt.steps, entry))
        done = step + 1
        if done % opt.validate_every == 0 or done == opt.steps:
            value = validate(accelerator.unwrap_model(editor), language_model, validation, recipe)
            log.write({"phase": "validation", "step": done, **value})
            on_report(Report("validation", done, opt.steps, value))
            if value["loss"] < progress.best_loss:
                progress = Progress(done, value["loss"], done)
                _save(accelerator.unwrap_model(editor), language_model, out / EDITOR, recipe, done)
        progress = Progress(done, progress.best_loss, progress.best_step)
        stop = _out_of_patience(progress, recipe)
        if done % opt.checkpoint_every == 0 or done == opt.steps or stop:
            save_checkpoint(checkpoint, accelerator.unwrap_model(editor), optimizer, progress, settings)
        if stop:
            logger.info("no better validation loss since step %d: stopping", progress.best_step)
            break
    trained: Mend = accelerator.unwrap_model(editor)
    return trained.eval()


def schedule(step: int, recipe: Recipe) -> float:
    """Factor on the learning rates: linear warm-up, plateau, linear decay over the last share of the steps."""
    opt = recipe.optimisation
    rise = (step + 1) / max(1, opt.warmup)
    fall = (opt.steps - step) / max(1.0, opt.decay * opt.steps)
    return min(1.0, rise, fall)


@torch.no_grad()
def validate(editor: Mend, language_model: LanguageModel, sources: Sequence[Source], recipe: Recipe) -> dict[str, Any]:
    """The training loss on the held-out edits, the same draws every time, and its parts by task."""
    editor.eval()
    by_task: dict[str, dict[str, float]] = {}
    weights = shares(sources, recipe.mixture, recipe.temperature)
    total = 0.0
    for source, weight in zip(sources, weights, strict=True):
        parts: list[Losses] = []
        count = min(recipe.optimisation.validation_edits, len(source.pool.records))
        rng = random.Random(f"{recipe.seed}-validation-{source.task.name}")
        for start in range(0, count, recipe.optimisation.batch):
            size = min(recipe.optimisation.batch, count - start)
            examples = draw([source], [1.0], size, recipe.objective, recipe.wordings, rng)
            with torch.enable_grad():
                deltas = editor(language_model, [e.request for e in examples], [e.instruction for e in examples])
            parts.append(compute(editor, language_model, deltas, examples, recipe.objective))
        edit = sum(part.edit for part in parts) / len(parts)
        locality = sum(part.locality for part in parts) / len(parts)
        by_task[source.task.name] = {"edit": round(edit, 4), "locality": round(locality, 4)}
        total += weight * (recipe.objective.edit_weight * edit + recipe.objective.locality_weight * locality)
    return {"loss": round(total, 5), "tasks": by_task}


def _optimizer(editor: Mend, recipe: Recipe) -> torch.optim.Optimizer:
    opt = recipe.optimisation
    others = [p for name, p in editor.named_parameters() if name != "theta" and p.requires_grad]
    groups = [
        {"params": others, "lr": opt.learning_rate, "initial_lr": opt.learning_rate},
        {"params": [editor.theta], "lr": opt.step_size_learning_rate, "initial_lr": opt.step_size_learning_rate},
    ]
    return torch.optim.Adam(groups)


def _entry(step: int, parts: Sequence[Losses], norm: float, seconds: float) -> dict[str, Any]:
    count = len(parts)
    return {
        "phase": "train",
        "step": step,
        "loss": round(sum(part.total.item() for part in parts) / count, 6),
        "edit": round(sum(part.edit for part in parts) / count, 6),
        "locality": round(sum(part.locality for part in parts) / count, 6),
        "gradient_norm": round(norm, 4),
        "seconds": round(seconds, 1),
        "tasks": parts[-1].by_task,
    }


def _out_of_patience(progress: Progress, recipe: Recipe) -> bool:
    opt = recipe.optimisation
    return opt.patience is not None and progress.step - progress.best_step > opt.patience * opt.validate_every


def _save(editor: Mend, language_model: LanguageModel, path: Path, recipe: Recipe, step: int) -> None:
    save_editor(
        editor,
        language_model,
        path,
        training={"recipe": recipe.model_dump(mode="json"), "step": step},
        dtype=DTYPES[recipe.store_dtype],
    )


class _Log:
    """A JSON Lines file; each line is one step or validation, flushed as it is written."""

    def __init__(self, path: Path, append: bool) -> None:
        self.path = path
        if not append:
            path.write_text("", encoding="utf-8")

    def write(self, entry: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")

    def cut_after(self, step: int) -> None:
        """Drop what an interrupted run logged after its last checkpoint; those steps come again."""
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                break  # the line that was being written when the run was killed
            if entry.get("phase") == "train" and entry["step"] >= step:
                break
            if entry.get("phase") == "validation" and entry["step"] > step:
                break
            kept.append(line)
        self.path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
