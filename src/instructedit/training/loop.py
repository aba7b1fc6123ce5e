"""The meta-training loop."""

from __future__ import annotations

import logging
import math
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
from accelerate.accelerator import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils.dataclasses import DistributedDataParallelKwargs
from accelerate.utils.operations import gather_object

from instructedit.data.locations import data_file, find_data
from instructedit.data.pool import RecordPool
from instructedit.data.readers import read_records
from instructedit.data.schemas.columns import Columns
from instructedit.editors.gradient import GradientEditor
from instructedit.editors.instructedit import InstructEdit
from instructedit.editors.saving import create_editor, load_editor, save_editor
from instructedit.errors import CheckpointError, DataError, EditorError
from instructedit.models.language_model import DTYPES, LanguageModel
from instructedit.models.trunk_cache import TrunkCache
from instructedit.records import EditRecord
from instructedit.storage.checkpoints import load_checkpoint, save_checkpoint
from instructedit.storage.reading import parse_json, read_text
from instructedit.storage.writing import append_line, as_json, locked, make_folder, write_atomically
from instructedit.tasks.edits import fitting_records
from instructedit.tasks.loading import load_task
from instructedit.training.memory import peak_bytes
from instructedit.training.mixture import Source, draw, shares, split_validation
from instructedit.training.objective import Losses, descend, measure
from instructedit.training.recipe import Optimisation, Recipe
from instructedit.training.warmup import warm_up_encoder

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.safetensors"
LOG = "log.jsonl"
EDITOR = "editor.safetensors"


@dataclass(frozen=True)
class Progress:
    """Where a run stands: steps done, and the best validation so far."""

    step: int
    best_loss: float
    best_step: int


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
        DataError: a file is missing or wrong, or a task has too little in it.
    """
    tasks = {mix.task: load_task(mix.task) for mix in recipe.tasks}
    read: dict[tuple[str, Columns | None], list[EditRecord]] = {}
    records: dict[str, list[EditRecord]] = {}
    for mix in recipe.tasks:
        task = tasks[mix.task]
        for name in mix.files:
            if (name, task.columns) not in read:
                read[name, task.columns] = read_records(
                    data_file(name, data), columns=task.columns, skip_incomplete=True
                )
        read_for_task = [record for name in mix.files for record in read[name, task.columns]]
        records[mix.task] = fitting_records(task, read_for_task, ", ".join(mix.files))
        if len({record.request.subject or record.request.prompt for record in records[mix.task]}) < 2:
            raise DataError(
                f"task {task.name} has one subject only; training needs another to validate on", field="tasks"
            )
    train, validation = split_validation(records, recipe.optimisation.validation_edits, recipe.seed)
    for mix in recipe.tasks:
        if mix.records is not None and mix.records < len(train[mix.task]):
            drawn = random.Random(f"{recipe.seed}-records-{mix.task}")
            train[mix.task] = drawn.sample(train[mix.task], mix.records)
    sources = [
        Source(tasks[mix.task], RecordPool(train[mix.task]), mix.weight, mix.locality, mix.recombine, mix.worst_token)
        for mix in recipe.tasks
    ]
    held_out = [
        replace(source, pool=RecordPool(validation[mix.task]), recombine=0.0)
        for source, mix in zip(sources, recipe.tasks, strict=True)
    ]
    return sources, held_out


def train(
    recipe: Recipe,
    language_model: LanguageModel,
    out: Path,
    data: Path | None = None,
    on_report: Callable[[Report], None] = lambda report: None,
) -> GradientEditor:
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
        DataError: as :func:`read_sources`, a task is held out from training, or ``out`` cannot be written or another
            training is writing there.
        EditorError: the loss is not finite, or another process ended.
        CheckpointError: the checkpoint is damaged or of another recipe, or the log beside it is gone.
    """
    for mix in recipe.tasks:
        if load_task(mix.task).held_out:
            raise DataError(f"task {mix.task} is held out: no editor is trained on it", field="tasks")
    make_folder(out)
    with _alone_in(out), _numerics(recipe), _telling_of_lost_processes(out / CHECKPOINT):
        run = _Run(recipe, language_model, out, data or find_data(), on_report)
        with _remembering_trunks(recipe, language_model, run.editor.split_layer) as cache:
            run.forgets = cache if recipe.trunk_memory.keep == "step" else None
            editor = run.train()
        if cache is not None and cache.hits + cache.misses:
            run.log.write({"phase": "trunk", "texts": cache.hits + cache.misses, "hit_rate": round(cache.hit_rate, 4)})
        return editor


@contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    """Keep other trainings out of the folder; of several processes that train together, the first does."""
    with ExitStack() as held:
        if int(os.environ.get("RANK", "0")) == 0:
            held.enter_context(locked(out))
        yield


@contextmanager
def _numerics(recipe: Recipe) -> Iterator[None]:
    """The recipe's threads and precision, which PyTorch keeps for the whole process; the old ones come back."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    if recipe.optimisation.threads is not None:
        torch.set_num_threads(recipe.optimisation.threads)
    torch.set_float32_matmul_precision(recipe.optimisation.matmul_precision)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)


@contextmanager
def _remembering_trunks(recipe: Recipe, language_model: LanguageModel, split_layer: int) -> Iterator[TrunkCache | None]:
    """The recipe's trunk cache, if it wants one and there is a trunk."""
    wanted = recipe.trunk_memory
    if split_layer == 0 or wanted.memory == 0:
        yield None
        return
    folder = None if wanted.folder is None else Path(wanted.folder)
    memory, disk = int(wanted.memory * 1e9), int(wanted.disk * 1e9)
    with language_model.remembering_trunks(split_layer, memory=memory, folder=folder, disk=disk) as cache:
        yield cache


@contextmanager
def _telling_of_lost_processes(checkpoint: Path) -> Iterator[None]:
    """A failed exchange between processes means that one of them has ended: say so, and how to go on."""
    try:
        yield
    except RuntimeError as error:
        of_exchange = isinstance(error, distributed.DistError) or "gloo" in str(error)
        if not (distributed.is_initialized() and of_exchange):
            raise
        raise EditorError(
            "another process of this training has ended or cannot be reached. See its own messages; then start the "
            f"same command again in all processes: it goes on from {checkpoint}"
        ) from error


class _Run:
    """One training run: what it holds, and its steps."""

    def __init__(
        self,
        recipe: Recipe,
        language_model: LanguageModel,
        out: Path,
        data: Path,
        on_report: Callable[[Report], None],
    ) -> None:
        self.recipe, self.language_model, self.out, self.on_report = recipe, language_model, out, on_report
        self.sources, self.validation = read_sources(recipe, data)
        self.shares = shares(self.sources, recipe.mixture, recipe.temperature)
        torch.manual_seed(recipe.seed)
        self.editor = _first_editor(recipe, language_model).to(language_model.device)
        self.encoder = self.editor.encoder if isinstance(self.editor, InstructEdit) else None
        AcceleratorState._reset_state()  # a process may train twice, with other precisions; processes stay as they are
        self.accelerator = Accelerator(
            cpu=language_model.device.type == "cpu",
            mixed_precision=recipe.optimisation.mixed_precision,
            # The only buffers are running statistics, which the editor itself reduces over the processes.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        self.processes, self.rank = self.accelerator.num_processes, self.accelerator.process_index
        if recipe.optimisation.batch % self.processes:
            raise EditorError(
                f"optimisation.batch is {recipe.optimisation.batch}, which {self.processes} processes cannot share "
                "evenly; choose a multiple"
            )
        self.checkpoint = out / CHECKPOINT
        self.resumes = self.checkpoint.exists()
        self.accelerator.wait_for_everyone()  # nobody writes before everybody has looked
        self.forgets: TrunkCache | None = None
        self.log = _Log(out / LOG, append=self.resumes, writes=self.accelerator.is_main_process)

    def train(self) -> GradientEditor:
        """All steps, from the checkpoint if there is one; returns the editor of the best validation loss."""
        opt = self.recipe.optimisation
        self._teach_encoder()
        self.optimizer = make_optimizer(self.editor, opt)
        self.model, self.optimizer = self.accelerator.prepare(self.editor, self.optimizer)
        self.began = time.monotonic()
        progress = self._first_progress()
        for step in range(progress.step, opt.steps):
            if _out_of_patience(progress, self.recipe):
                logger.info("no better validation loss since step %d: stopping", progress.best_step)
                break
            self._step(step)
            done = step + 1
            best_loss, best_step = progress.best_loss, progress.best_step
            if done % opt.validate_every == 0 or done == opt.steps:
                loss = self._validate(done)
                if loss < best_loss:
                    best_loss, best_step = loss, done
                    if self.accelerator.is_main_process:
                        _save(self.editor, self.language_model, self.out / EDITOR, self.recipe, done)
            progress = Progress(done, best_loss, best_step)
            if done % opt.checkpoint_every == 0 or done == opt.steps or _out_of_patience(progress, self.recipe):
                self._save_checkpoint(progress)
        self.accelerator.wait_for_everyone()
        return load_editor(self.out / EDITOR, self.language_model)

    def _teach_encoder(self) -> None:
        warmup = self.recipe.encoder_warmup
        if self.encoder is None or warmup.steps == 0:
            return
        if not self.resumes and self.recipe.start_from is None:
            accuracy = warm_up_encoder(
                self.encoder,
                self.language_model,
                [source.task for source in self.sources],
                warmup,
                self.recipe.wordings,
                self.recipe.seed,
                lambda step, loss: self.on_report(Report("encoder", step + 1, warmup.steps, {"loss": loss})),
            )
            self.log.write({"phase": "encoder", "steps": warmup.steps, "accuracy": round(accuracy, 4)})
        if warmup.freeze:
            self.encoder.requires_grad_(False)

    def _first_progress(self) -> Progress:
        if self.resumes:
            kept = load_checkpoint(self.checkpoint, self.editor, [self.optimizer], self.recipe.settings())
            progress = _progress(kept, self.checkpoint)
            self.began -= self.log.cut_after(progress.step)
            logger.info("resuming %s at step %d", self.out, progress.step)
            return progress
        progress = Progress(0, math.inf, 0)
        self._save_checkpoint(progress)  # a run killed early need not teach the encoder again
        return progress

    def _step(self, step: int) -> None:
        """One optimiser step; all that it draws follows from the seed and the step's number."""
        opt = self.recipe.optimisation
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * schedule(step, self.recipe)
        if self.forgets is not None:
            self.forgets.clear()
        self.editor.train()
        if self.encoder is not None and not any(p.requires_grad for p in self.encoder.parameters()):
            self.encoder.eval()  # frozen: no dropout either
        torch.manual_seed(self.recipe.seed * 1_000_003 + step)
        parts = []
        for part in range(opt.accumulate):
            rng = random.Random(f"{self.recipe.seed}-{step}-{part}")
            examples = draw(self.sources, self.shares, opt.batch, self.recipe.objective, self.recipe.wordings, rng)
            mine = examples[self.rank :: self.processes]  # in strides, so that every process gets every task
            waits = part + 1 < opt.accumulate
            sharing = self.accelerator.no_sync(self.model) if waits else nullcontext()
            with sharing, self.accelerator.autocast():
                deltas = self.model(self.language_model, [e.request for e in mine], [e.instruction for e in mine])
                losses = descend(
                    self.editor,
                    self.language_model,
                    deltas,
                    mine,
                    self.recipe.objective,
                    scale=1 / opt.accumulate,
                    mean_over_processes=self._mean,
                )
            parts.append(losses)
        norm = float(self.accelerator.clip_grad_norm_(self.model.parameters(), opt.clip))
        if not math.isfinite(norm):
            raise EditorError(
                f"step {step}: the gradient is not finite. Lower optimisation.learning_rate or editor.step_size; the "
                f"last checkpoint stands in {self.checkpoint}"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.processes > 1:
            parts = gather_object(parts)
        entry = _entry(step, joined(parts), norm, time.monotonic() - self.began)
        self.log.write(entry)
        self.on_report(Report("train", step + 1, opt.steps, entry))

    def _mean(self, value: float) -> float:
        """The mean of a number over the processes."""
        if self.processes == 1:
            return value
        return float(self.accelerator.reduce(torch.tensor(value, device=self.accelerator.device), "mean"))

    def _validate(self, done: int) -> float:
        value = validate(self.editor, self.language_model, self.validation, self.recipe)
        self.editor.usual_norms = value["norms"]
        self.log.write({"phase": "validation", "step": done, **value, "peak_bytes": peak_bytes()})
        self.on_report(Report("validation", done, self.recipe.optimisation.steps, value))
        return float(value["loss"])

    def _save_checkpoint(self, progress: Progress) -> None:
        if not self.accelerator.is_main_process:
            return
        kept = asdict(progress)
        if math.isinf(progress.best_loss):  # which JSON has not
            kept["best_loss"] = None
        save_checkpoint(self.checkpoint, self.editor, [self.optimizer], kept, self.recipe.settings())


def _progress(kept: Mapping[str, Any], checkpoint: Path) -> Progress:
    """What a checkpoint says of where the run stands.

    Raises:
        CheckpointError: it is not what a training writes.
    """
    step, loss, best = kept.get("step"), kept.get("best_loss"), kept.get("best_step")
    if kept.keys() != {"step", "best_loss", "best_step"} or not isinstance(step, int) or not isinstance(best, int):
        raise CheckpointError(f"file {checkpoint}: its progress is not that of a training; give another --out")
    if loss is None:  # no validation yet: JSON has no infinity
        return Progress(step, math.inf, best)
    if not isinstance(loss, (int, float)):
        raise CheckpointError(f"file {checkpoint}: its progress is damaged; give another --out")
    return Progress(step, loss, best)


def _first_editor(recipe: Recipe, language_model: LanguageModel) -> GradientEditor:
    """A new editor, or the one that the recipe starts from.

    Raises:
        EditorError: that one has another shape than the recipe asks for.
    """
    if recipe.start_from is None:
        return create_editor(recipe.editor, language_model)
    editor = load_editor(recipe.start_from, language_model, to_train=True)
    if editor.config != recipe.editor:
        raise EditorError(f"{recipe.start_from} has another shape than the recipe's editor; make `editor:` the same")
    return editor


def schedule(step: int, recipe: Recipe) -> float:
    """Factor on the learning rates: linear warm-up, plateau, linear decay over the last share of the steps."""
    opt = recipe.optimisation
    rise = (step + 1) / max(1, opt.warmup)
    fall = (opt.steps - step) / max(1.0, opt.decay * opt.steps)
    return min(1.0, rise, fall)


@torch.no_grad()
def validate(
    editor: GradientEditor, language_model: LanguageModel, sources: Sequence[Source], recipe: Recipe
) -> dict[str, Any]:
    """The training loss on the held-out edits, the same draws every time, and its parts by task."""
    editor.eval()
    by_task: dict[str, dict[str, float]] = {}
    weights = shares(sources, recipe.mixture, recipe.temperature)
    total, norms = 0.0, []
    for source, weight in zip(sources, weights, strict=True):
        parts: list[Losses] = []
        count = min(recipe.optimisation.validation_edits, len(source.pool.records))
        rng = random.Random(f"{recipe.seed}-validation-{source.task.name}")
        for start in range(0, count, recipe.optimisation.batch):
            size = min(recipe.optimisation.batch, count - start)
            examples = draw([source], [1.0], size, recipe.objective, recipe.wordings, rng)
            with torch.enable_grad():
                deltas = editor(language_model, [e.request for e in examples], [e.instruction for e in examples])
            norms += deltas.norms().tolist()
            parts.append(measure(editor, language_model, deltas, examples, recipe.objective))
        whole = joined(parts)
        edit, locality = whole.mean_edit, whole.mean_locality
        by_task[source.task.name] = {"edit": round(edit, 4), "locality": round(locality, 4)}
        total += weight * (recipe.objective.edit_weight * edit + recipe.objective.locality_weight * locality)
    return {"loss": round(total, 5), "tasks": by_task, "norms": _range(norms)}


def _range(values: Sequence[float]) -> tuple[float, float]:
    """1st and 99th percentile."""
    low, high = torch.tensor(values).quantile(torch.tensor([0.01, 0.99])).tolist()
    return round(low, 6), round(high, 6)


def make_optimizer(editor: GradientEditor, opt: Optimisation) -> torch.optim.Optimizer:
    """Adam over the hypernetwork, with a rate of its own for the step sizes."""
    others = [p for name, p in editor.named_parameters() if name != "log_lr" and p.requires_grad]
    groups = [
        {"params": others, "lr": opt.learning_rate, "initial_lr": opt.learning_rate},
        {"params": [editor.log_lr], "lr": opt.step_size_learning_rate, "initial_lr": opt.step_size_learning_rate},
    ]
    return torch.optim.Adam(groups, fused=True)


def joined(parts: Sequence[Losses]) -> Losses:
    """Equally large parts of a batch as one."""
    return Losses(
        sum(part.total for part in parts) / len(parts),
        tuple(value for part in parts for value in part.edit),
        tuple(value for part in parts for value in part.locality),
        tuple(task for part in parts for task in part.tasks),
    )


def _entry(step: int, losses: Losses, norm: float, seconds: float) -> dict[str, Any]:
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


def _out_of_patience(progress: Progress, recipe: Recipe) -> bool:
    opt = recipe.optimisation
    return opt.patience is not None and progress.step - progress.best_step >= opt.patience * opt.validate_every


def _save(editor: GradientEditor, language_model: LanguageModel, path: Path, recipe: Recipe, step: int) -> None:
    save_editor(
        editor,
        language_model,
        path,
        training={"recipe": recipe.model_dump(mode="json"), "step": step},
        dtype=DTYPES[recipe.store_dtype],
    )


class _Log:
    """A JSON Lines file; each line is one step or validation, flushed as it is written."""

    def __init__(self, path: Path, append: bool, writes: bool) -> None:
        self.path = path
        self.writes = writes  # of several processes only one
        if writes and not append:
            write_atomically(path, b"")

    def write(self, entry: dict[str, Any]) -> None:
        """Add an entry.

        Raises:
            DataError: it cannot be written, as on a full disk; or a number in it is not finite.
        """
        if self.writes:
            append_line(self.path, as_json(entry, file=self.path), sync=False)

    def cut_after(self, step: int) -> float:
        """Drop what an interrupted run logged after its last checkpoint; those steps come again.

        Returns:
            The seconds that the steps which are kept took.

        Raises:
            CheckpointError: the log is gone or damaged, so what the checkpoint goes on from is not known.
        """
        if not self.writes:
            return 0.0
        kept, seconds, trained = [], 0.0, 0
        try:
            content = read_text(self.path)
        except DataError as error:
            raise self._damaged(str(error)) from None
        *lines, _cut_off = content.split("\n")  # the line that was being written when the run was killed
        for line in lines:
            try:
                entry = parse_json(line)
            except DataError:
                break
            if not _is_entry(entry):
                break
            if entry["phase"] == "train" and entry["step"] >= step:
                break
            if entry["phase"] == "validation" and entry["step"] > step:
                break
            kept.append(line)
            trained += entry["phase"] == "train"
            seconds = float(entry.get("seconds", seconds))
        if trained < step:
            raise self._damaged(
                f"file {self.path}: tells {trained} of the {step} steps that the checkpoint stands after"
            )
        write_atomically(self.path, "".join(line + "\n" for line in kept).encode())
        return seconds

    def _damaged(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{problem}. The run cannot go on; give another --out, or delete the folder")


def _is_entry(entry: Any) -> bool:
    """Whether an entry has what is read of it."""
    if not isinstance(entry, dict) or not isinstance(entry.get("phase"), str):
        return False
    steps = entry["phase"] not in ("train", "validation") or isinstance(entry.get("step"), int)
    return steps and isinstance(entry.get("seconds", 0.0), (int, float))
