"""Training of a small base model from scratch on a corpus of short documents: batch, loss, step, recall, save."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from instructedit.base_model.corpus import Corpus, Document
from instructedit.base_model.model import answer_loss, make_optimizers, new_model, train_tokenizer
from instructedit.base_model.recipe import BaseModelSettings
from instructedit.base_model.rows import Rows
from instructedit.errors import ModelError
from instructedit.storage.checkpoints import load_checkpoint, save_checkpoint
from instructedit.training.schedule import learning_rate_factor

logger = logging.getLogger(__name__)

CLIP = 1.0


def pretrain(
    corpus: Corpus,
    settings: BaseModelSettings,
    start: tuple[GPT2LMHeadModel, PreTrainedTokenizerFast] | None,
    checkpoint: Path,
    checkpoint_settings: Mapping[str, Any],
    on_step: Callable[[int, int, float], None],
    evaluate: Callable[[GPT2LMHeadModel, PreTrainedTokenizerFast], dict[str, float]],
) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast, list[dict[str, float]]]:
    """Train a base model.

    Args:
        corpus: Draws the documents of each epoch.
        settings: Shape and training.
        start: Model and tokenizer to initialise from; None for random weights and a tokenizer of the corpus.
        checkpoint: File that is written after every epoch; training resumes from it if it is there.
        checkpoint_settings: All settings that decide the run, which a checkpoint must agree with.
        on_step: Called with the step, the number of steps and the loss.
        evaluate: Called after every epoch.

    Returns:
        The model, its tokenizer, and the evaluation after each epoch.

    Raises:
        CheckpointError: The checkpoint is damaged, or of another recipe.
        ModelError: The loss is not finite.
    """

    def draw(epoch: int) -> list[Document]:
        return corpus.epoch(
            settings.seed + epoch,
            exclusion_share=settings.exclusion_share,
            stated_context_share=settings.stated_context_share,
        )

    first = draw(0)
    tokenizer = start[1] if start else train_tokenizer(first, settings.vocabulary, settings.positions)
    rows = Rows(tokenizer, settings)
    model = start[0] if start else new_model(settings, rows.end)
    model.train().requires_grad_(True)
    steps = settings.epochs * sum(1 for _ in rows.batches(first, 0))
    optimizers = make_optimizers(model, settings)
    progress: dict[str, Any] = {"epochs": 0, "steps": 0, "history": []}
    if checkpoint.is_file():
        progress = load_checkpoint(checkpoint, model, optimizers, checkpoint_settings)
    step, history = progress["steps"], progress["history"]
    began = time.monotonic() - (60 * history[-1]["minutes"] if history else 0)
    for epoch in range(progress["epochs"], settings.epochs):
        for batch in rows.batches(draw(epoch), settings.seed + epoch):
            if step == steps:
                break  # an epoch is drawn at random; the number of its batches varies by a few
            loss = _step(model, optimizers, batch, step, steps, settings)
            on_step(step, steps, loss)
            step += 1
        model.eval()
        scores = evaluate(model, tokenizer)
        model.train()
        minutes = round((time.monotonic() - began) / 60, 1)
        history.append({"epoch": epoch + 1, "loss": round(loss, 4), "minutes": minutes, **scores})
        logger.warning("epoch %d: %s", epoch + 1, history[-1])
        progress = {"epochs": epoch + 1, "steps": step, "history": history}
        save_checkpoint(checkpoint, model, optimizers, progress, checkpoint_settings)
    return model.eval(), tokenizer, history


def _step(
    model: GPT2LMHeadModel,
    optimizers: Sequence[torch.optim.Optimizer],
    batch: tuple[Tensor, Tensor, Tensor],
    step: int,
    steps: int,
    settings: BaseModelSettings,
) -> float:
    """Take one optimiser step; return the loss before it.

    Raises:
        ModelError: The loss is not finite.
    """
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = answer_loss(model, *batch)
    if not math.isfinite(loss.item()):
        raise ModelError(
            f"step {step}: the loss is {loss.item()}; lower model.matrix_learning_rate or model.learning_rate"
        )
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    factor = learning_rate_factor(
        step,
        steps,
        warmup_steps=settings.warmup_fraction * steps,
        cooldown_fraction=settings.cooldown_fraction,
    )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = optimizer.defaults["lr"] * factor
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss.item()
