"""The meta-training loop: data, batch, loss, step, validate, save.

Everything that a step draws follows from the recipe's seed and the step's number, so a run that was killed and is
started again has the losses of an uninterrupted one.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.operations import gather_object

from instructedit.artifacts import EDITOR_WEIGHTS
from instructedit.data.locations import find_data
from instructedit.editors.gradient import GradientEditor, create_editor
from instructedit.editors.instructedit import InstructEdit
from instructedit.editors.saving import digest_of, load_trained_editor, save_editor
from instructedit.errors import DataError, EditorError
from instructedit.models.allocator import FreedMemory
from instructedit.models.language_model import DTYPES, LanguageModel
from instructedit.models.trunk_cache import TrunkCache
from instructedit.storage.checkpoints import load_checkpoint, save_checkpoint
from instructedit.storage.writing import make_folder
from instructedit.tasks.loading import load_task
from instructedit.training.batches import draw_examples
from instructedit.training.data import read_sources
from instructedit.training.encoder_update import update_encoder
from instructedit.training.environment import numerics, trunk_cache
from instructedit.training.log import LOG, TrainingLog
from instructedit.training.memory import peak_bytes
from instructedit.training.mixture import Example, Source, task_shares
from instructedit.training.objective import Losses, loss_and_backward
from instructedit.training.processes import (
    locked_by_first_process,
    lost_process_reported,
    make_accelerator,
    mean_over_processes,
)
from instructedit.training.progress import Progress, Report
from instructedit.training.reach import fit_reach
from instructedit.training.recipe import Optimisation, Recipe
from instructedit.training.schedule import learning_rate_factor
from instructedit.training.validation import validate
from instructedit.training.warmup import warm_up_encoder

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.safetensors"
#: Parameters with one number for each matrix: alpha, kappa and rho, before exponential and sigmoid.
PER_MATRIX = ("log_lr", "contrast_logit", "null_space_logit")
EDITOR = EDITOR_WEIGHTS


def train(
    recipe: Recipe,
    language_model: LanguageModel,
    out: Path,
    data: Path | None = None,
    on_report: Callable[[Report], None] = lambda report: None,
) -> GradientEditor:
    """Train an editor for one stage; resume from the checkpoint in ``out`` if there is one.

    Args:
        recipe: Settings of the stage.
        language_model: The base model, frozen.
        out: Folder for the log, the checkpoint and the trained editor.
        data: Folder with the training files; default :func:`find_data`.
        on_report: Called after every step and validation.

    Returns:
        The editor with the best validation loss.

    Raises:
        DataError: As :func:`read_sources`; or a task is held out from training; or ``out`` cannot be written, or
            another training is writing there.
        EditorError: The loss is not finite, or another process ended.
        CheckpointError: The checkpoint is damaged or of another recipe, or the log beside it is missing.
    """
    for mix in recipe.tasks:
        if load_task(mix.task).held_out:
            raise DataError(f"task {mix.task} is held out from training; remove it from `tasks`", field="tasks")
    make_folder(out)
    with locked_by_first_process(out), numerics(recipe.optimisation), lost_process_reported(out / CHECKPOINT):
        sources = read_sources(recipe, data or find_data(name for mix in recipe.tasks for name in mix.files))
        torch.manual_seed(recipe.seed)
        editor = initial_editor(recipe, language_model).to(language_model.device)
        with trunk_cache(recipe.trunk_cache, language_model, editor.split_layer) as cache:
            trainer = Trainer(recipe, language_model, editor, sources, cache, out, on_report)
            best = trainer.train()
        if cache is not None and cache.hits + cache.misses:
            texts, hit_rate = cache.hits + cache.misses, round(cache.hit_rate, 4)
            trainer.log.write({"phase": "trunk", "texts": texts, "hit_rate": hit_rate})
        return best


class Trainer:
    """One training run, ready for its next step once constructed.

    Args:
        recipe: Settings of the stage.
        language_model: The base model.
        editor: Is trained in place.
        sources: Training and validation sources, one per task each.
        cache: The trunk cache in use, if any.
        out: Folder for the log, the checkpoint and the trained editor.
        on_report: Called after every step and validation.
    """

    def __init__(
        self,
        recipe: Recipe,
        language_model: LanguageModel,
        editor: GradientEditor,
        sources: tuple[list[Source], list[Source]],
        cache: TrunkCache | None,
        out: Path,
        on_report: Callable[[Report], None],
    ) -> None:
        self.recipe, self.opt, self.language_model, self.editor = recipe, recipe.optimisation, language_model, editor
        self.sources, self.validation_sources = sources
        self.shares = task_shares(self.sources, recipe.mixture, recipe.temperature)
        self.cache, self.on_report = cache, on_report
        self.checkpoint, self.best_editor = out / CHECKPOINT, out / EDITOR
        self.settings = checkpoint_settings(recipe)
        self.accelerator = make_accelerator(language_model.device, self.opt)
        resumes = self.checkpoint.exists()
        self.accelerator.wait_for_everyone()  # no process writes before every process has looked
        self.log = TrainingLog(out / LOG, append=resumes, writes=self.accelerator.is_main_process)
        self.encoder = editor.encoder if isinstance(editor, InstructEdit) else None
        self._train_encoder(resumes)
        self.model, self.optimizer = self.accelerator.prepare(editor, make_optimizer(editor, self.opt))
        self.began = time.monotonic()
        if resumes:
            self.progress = self._resume()
        else:
            self.progress = Progress()
            self.save_checkpoint()  # so that a run killed before the next one need not warm up the encoder again

    def train(self) -> GradientEditor:
        """Run the remaining steps; return the editor with the best validation loss."""
        opt = self.opt
        freed_memory = FreedMemory()
        for step in range(self.progress.step, opt.steps):
            if self.progress.exhausts_patience(opt):
                logger.info("no better validation loss since step %d: stopping", self.progress.best_step)
                break
            self.step(step)
            freed_memory.after_step()
            done = step + 1
            best_loss, best_step = self.progress.best_loss, self.progress.best_step
            if done % opt.validate_every == 0 or done == opt.steps:
                loss = self.validate(done)
                if loss < best_loss:
                    best_loss, best_step = loss, done
                    self.save_editor(done)
            self.progress = Progress(done, best_loss, best_step)
            if done % opt.checkpoint_every == 0 or done == opt.steps or self.progress.exhausts_patience(opt):
                self.save_checkpoint()
        self.accelerator.wait_for_everyone()
        return load_trained_editor(self.best_editor, self.language_model)

    def step(self, step: int) -> None:
        """Take one optimiser step.

        Raises:
            EditorError: The gradient is not finite.
        """
        factor = learning_rate_factor(
            step, self.opt.steps, warmup_steps=self.opt.warmup_steps, cooldown_fraction=self.opt.cooldown_fraction
        )
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        if self.cache is not None and self.recipe.trunk_cache.scope == "step":
            self.cache.clear()
        self.editor.train()
        if self.encoder is not None and not any(p.requires_grad for p in self.encoder.parameters()):
            self.encoder.eval()  # frozen: no dropout either
        torch.manual_seed(self.recipe.seed * 1_000_003 + step)
        parts = [self.loss_and_backward(step, part) for part in range(self.opt.accumulate)]
        norm = float(self.accelerator.clip_grad_norm_(self.model.parameters(), self.opt.clip))
        if not math.isfinite(norm):
            raise EditorError(
                f"step {step}: the gradient is not finite. Lower optimisation.learning_rate or editor.step_size; the "
                f"last checkpoint is {self.checkpoint}"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        losses = Losses.concatenate(gather_object(parts) if self.accelerator.num_processes > 1 else parts)
        entry = _log_entry(step, losses, norm, time.monotonic() - self.began)
        self.log.write(entry)
        self.on_report(Report("train", step + 1, self.opt.steps, entry))

    def loss_and_backward(self, step: int, part: int) -> Losses:
        """Compute the loss of one of the step's accumulated batches, and add its gradient."""
        batch = self.draw_batch(step, part)
        is_last = part + 1 == self.opt.accumulate  # gradients are averaged over the processes once per step
        with nullcontext() if is_last else self.accelerator.no_sync(self.model), self.accelerator.autocast():
            deltas = self.model(self.language_model, [e.request for e in batch], [e.instruction for e in batch])
            return loss_and_backward(
                self.editor,
                self.language_model,
                deltas,
                batch,
                self.recipe.objective,
                scale=1 / self.opt.accumulate,
                mean_over_processes=lambda value: mean_over_processes(self.accelerator, value),
            )

    def draw_batch(self, step: int, part: int) -> list[Example]:
        """Draw a batch; return this process's share of it."""
        rng = random.Random(f"{self.recipe.seed}-{step}-{part}")
        batch = draw_examples(self.recipe, self.language_model, self.sources, self.shares, self.opt.batch, rng)
        # In strides, so that every process gets every task.
        return batch[self.accelerator.process_index :: self.accelerator.num_processes]

    def validate(self, done: int) -> float:
        """Return the validation loss after ``done`` steps."""
        if isinstance(self.editor, InstructEdit):
            tasks = [source.task for source in self.sources]
            share, noise = self.recipe.scope_template_share, self.recipe.instruction_noise
            fit_reach(self.editor, self.language_model, tasks, share, self.recipe.seed, noise)
        entry = validate(self.editor, self.language_model, self.validation_sources, self.recipe)
        self.editor.usual_norms = entry["norms"]
        self.log.write({"phase": "validation", "step": done, **entry, "peak_bytes": peak_bytes()})
        self.on_report(Report("validation", done, self.opt.steps, entry))
        return float(entry["loss"])

    def save_editor(self, done: int) -> None:
        """Write the editor as it is after ``done`` steps."""
        if self.accelerator.is_main_process:
            training = {"recipe": self.settings, "step": done}
            dtype = DTYPES[self.recipe.store_dtype]
            save_editor(self.editor, self.language_model, self.best_editor, training=training, dtype=dtype)

    def save_checkpoint(self) -> None:
        """Write all that resuming needs."""
        if self.accelerator.is_main_process:
            save_checkpoint(self.checkpoint, self.editor, [self.optimizer], self.progress.as_dict(), self.settings)

    def _resume(self) -> Progress:
        """Restore editor, optimiser, log and clock from the checkpoint.

        Raises:
            CheckpointError: The checkpoint is damaged or of another recipe, or the log is missing or damaged.
        """
        raw = load_checkpoint(self.checkpoint, self.editor, [self.optimizer], self.settings)
        progress = Progress.from_dict(raw, self.checkpoint)
        self.began -= self.log.rewind(progress.step)
        logger.info("resuming %s at step %d", self.checkpoint.parent, progress.step)
        return progress

    def _train_encoder(self, resumes: bool) -> None:
        """Train the encoder alone: a new one from the start, and any one further where the recipe says so."""
        if self.encoder is None:
            return
        recipe, warmup, update = self.recipe, self.recipe.encoder_warmup, self.recipe.encoder_update
        tasks = [source.task for source in self.sources]
        share, seed, noise = recipe.scope_template_share, recipe.seed, recipe.instruction_noise

        def report(step: int, loss: float, steps: int) -> None:
            self.on_report(Report("encoder", step + 1, steps, {"loss": loss}))

        if warmup.steps and not resumes and recipe.start_from is None:
            on_step = partial(report, steps=warmup.steps)
            accuracy = warm_up_encoder(self.encoder, self.language_model, tasks, warmup, share, seed, noise, on_step)
            self.log.write({"phase": "encoder", "steps": warmup.steps, "accuracy": round(accuracy, 4)})
        if update.steps and not resumes:
            on_step = partial(report, steps=update.steps)
            before, after = update_encoder(
                self.encoder, self.language_model, tasks, update, share, seed, noise, on_step
            )
            right = {"right_before": round(before, 4), "right": round(after, 4)}
            self.log.write({"phase": "encoder", "steps": update.steps, **right})
        if warmup.steps and warmup.freeze:
            self.encoder.requires_grad_(False)


def initial_editor(recipe: Recipe, language_model: LanguageModel) -> GradientEditor:
    """Return a new editor, or the one that the recipe starts from.

    An editor without a null space can be given one: its new parameters are those of a new editor.

    Raises:
        EditorError: That one has another shape than the recipe's.
    """
    if recipe.start_from is None:
        return create_editor(recipe.editor, language_model)
    editor = load_trained_editor(recipe.start_from, language_model, to_train=True)
    if editor.config == recipe.editor:
        return editor
    if not recipe.editor.continues(editor.config):
        raise EditorError(
            f"the config of {recipe.start_from} differs from `editor:` in the recipe; use the same settings"
        )
    extended = create_editor(recipe.editor, language_model)
    earlier = {name: tensor for name, tensor in editor.state_dict().items() if name in extended.state_dict()}
    extended.load_state_dict({**extended.state_dict(), **earlier})
    return extended.train()


def checkpoint_settings(recipe: Recipe) -> dict[str, Any]:
    """Return what a checkpoint must agree with: the recipe's settings, with the initial editor by its content."""
    start = None if recipe.start_from is None else digest_of(recipe.start_from) or recipe.start_from
    return {**recipe.settings(), "start_from": start}


def make_optimizer(editor: GradientEditor, opt: Optimisation) -> torch.optim.Optimizer:
    """Return Adam over the editor's trainable parameters, with a learning rate of its own for numbers per matrix."""
    trained = [(name, p) for name, p in editor.named_parameters() if p.requires_grad]
    rates = {False: opt.learning_rate, True: opt.step_size_learning_rate}
    groups = [
        {"params": [p for name, p in trained if (name in PER_MATRIX) is per_matrix], "lr": rate, "initial_lr": rate}
        for per_matrix, rate in rates.items()
    ]
    return torch.optim.Adam(groups, fused=True)


def _log_entry(step: int, losses: Losses, norm: float, seconds: float) -> dict[str, Any]:
    return {
        "phase": "train",
        "step": step,
        "loss": round(losses.total, 6),
        "edit": round(losses.mean_edit, 6),
        "locality": round(losses.mean_locality, 6),
        "gradient_norm": round(norm, 4),
        "seconds": round(seconds, 1),
        "tasks": losses.by_task(),
    }
