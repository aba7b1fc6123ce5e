"""Training of a small base model from scratch on a corpus of short documents.

Rows are single documents, so a query meets the model as it was taught: at position 0, without a neighbour in
its context. Only the answer is learned from most rows; a share of them is learned from the first token on, which
keeps the model able to write whole sentences.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from instructedit.base_model.corpus import Corpus, Document
from instructedit.errors import ModelError
from instructedit.models.text import TextEncoder, join_prompt_and_target, pad, with_period
from instructedit.storage.checkpoints import load_checkpoint, save_checkpoint

logger = logging.getLogger(__name__)

END = "<|endoftext|>"


class BaseModelRecipe(BaseModel):
    """Every number that makes a base model. Units stand with the fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    vocabulary: int = Field(6144, ge=300, le=10_000_000, description="tokens in the byte-level BPE")
    blocks: int = Field(6, ge=1, le=1000)
    width: int = Field(256, ge=16, le=65_536, description="hidden size")
    heads: int = Field(4, ge=1, le=1024)
    positions: int = Field(256, ge=32, le=1_000_000, description="longest sequence, tokens")
    epochs: int = Field(12, ge=1, le=1_000_000, description="passes over the corpus; every pass words the facts anew")
    batch_tokens: int = Field(6144, ge=256, le=100_000_000, description="padded tokens a step")
    matrix_learning_rate: float = Field(4e-3, gt=0, le=1000, description="Muon, on the blocks' matrices")
    learning_rate: float = Field(3e-3, gt=0, le=1000, description="AdamW, on everything else")
    weight_decay: float = Field(0.01, ge=0, le=1000)
    warmup: float = Field(0.02, ge=0, le=1, description="share of all steps")
    decay: float = Field(0.5, ge=0, le=1, description="share of all steps in which the rate falls to zero")
    whole_rows: float = Field(0.1, ge=0, le=1, description="share of rows learned from the first token on")
    shifted_rows: float = Field(0.2, ge=0, le=1, description="share of rows that start at a random position")
    exclusions: float = Field(0.0, ge=0, le=1, description="share of facts also asked with an answer ruled out")
    retold: float = Field(0.0, ge=0, le=1, description="share of facts also asked after something made up is stated")
    seed: int = Field(0, ge=0, le=2**32 - 1)


def train_tokenizer(documents: Sequence[Document], vocabulary: int, positions: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the documents, with one special token that ends a text and pads."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((" ".join((d.prompt, d.answer)) for d in documents), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END, model_max_length=positions)


def new_model(recipe: BaseModelRecipe, end: int) -> GPT2LMHeadModel:
    """A randomly initialised GPT-2 of the recipe's shape, with tied embeddings."""
    config = GPT2Config(
        vocab_size=recipe.vocabulary,
        n_positions=recipe.positions,
        n_embd=recipe.width,
        n_layer=recipe.blocks,
        n_head=recipe.heads,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
    )
    # For rows of a few dozen tokens plain attention is faster on a CPU than the fused kernel's backward.
    config._attn_implementation = "eager"
    torch.manual_seed(recipe.seed)
    return GPT2LMHeadModel(config)


class Rows:
    """Tokenised documents in batches of about equal padded size, each batch of one length bucket."""

    LENGTHS = (10, 12, 14, 16, 18, 20, 24, 28, 34, 44, 60, 90, 140)

    def __init__(self, tokenizer: PreTrainedTokenizerFast, recipe: BaseModelRecipe) -> None:
        self.tokenizer = tokenizer
        self.recipe = recipe
        self.end = int(tokenizer.eos_token_id)

    def batches(self, documents: Sequence[Document], seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield (ids, labels, positions), each (rows, length); labels are -100 where nothing is learned."""
        rng = random.Random(seed)
        pairs = [join_prompt_and_target(document.prompt, with_period(document.answer)) for document in documents]
        prompts = self.tokenizer([prompt for prompt, _ in pairs])["input_ids"]
        answers = self.tokenizer([answer for _, answer in pairs])["input_ids"]
        lengths = [length for length in self.LENGTHS if length <= self.recipe.positions]
        buckets: dict[int, list[tuple[list[int], int]]] = {length: [] for length in lengths}
        for document, prompt, answer in zip(documents, prompts, answers, strict=True):
            ids = [*prompt, *answer, self.end]
            length = next((length for length in lengths if len(ids) <= length), None)
            if length is not None:
                buckets[length].append((ids, len(prompt) + document.given))
        batches = []
        for length, rows in buckets.items():
            size = max(1, self.recipe.batch_tokens // length)
            batches += [(length, rows[start : start + size]) for start in range(0, len(rows), size)]
        rng.shuffle(batches)
        for length, rows in batches:
            yield self._collate(rows, length, rng)

    def _collate(
        self, rows: Sequence[tuple[list[int], int]], length: int, rng: random.Random
    ) -> tuple[Tensor, Tensor, Tensor]:
        ids = torch.full((len(rows), length), self.end)
        labels = torch.full((len(rows), length), -100)
        starts = torch.zeros(len(rows), dtype=torch.long)
        for row, (tokens, prompt_length) in enumerate(rows):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            first = 1 if rng.random() < self.recipe.whole_rows else prompt_length
            labels[row, first - 1 : len(tokens) - 1] = ids[row, first : len(tokens)]
            if rng.random() < self.recipe.shifted_rows:
                starts[row] = rng.randrange(self.recipe.positions - length + 1)
        return ids, labels, starts[:, None] + torch.arange(length)


def answer_loss(model: GPT2LMHeadModel, ids: Tensor, labels: Tensor, positions: Tensor) -> Tensor:
    """Mean cross-entropy over the labelled positions; logits are computed there and nowhere else."""
    hidden = model.transformer(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
    wanted = labels != -100
    return functional.cross_entropy(model.lm_head(hidden[wanted]), labels[wanted])


def optimizers(model: GPT2LMHeadModel, recipe: BaseModelRecipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings, norms and biases."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".h." in name]
    inside = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in inside]
    return [
        torch.optim.Muon(
            matrices,
            lr=recipe.matrix_learning_rate,
            weight_decay=recipe.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(others, lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def rate(step: int, steps: int, recipe: BaseModelRecipe) -> float:
    """Warm-up, plateau, then a straight line to zero."""
    rise = (step + 1) / max(1.0, recipe.warmup * steps)
    fall = (steps - step) / max(1.0, recipe.decay * steps)
    return min(1.0, rise, fall)


def pretrain(
    corpus: Corpus,
    recipe: BaseModelRecipe,
    start: tuple[GPT2LMHeadModel, PreTrainedTokenizerFast] | None,
    checkpoint: Path,
    settings: Mapping[str, Any],
    on_step: Callable[[int, int, float], None],
    measure: Callable[[GPT2LMHeadModel, PreTrainedTokenizerFast], dict[str, float]],
) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast, list[dict[str, float]]]:
    """Train a base model, from scratch or on from ``start``.

    Args:
        checkpoint: where the state is kept after every pass; if it stands there, training goes on from it.
        settings: all that decides the run, which the checkpoint has to agree with.
        on_step: called with the step, all steps and the loss.
        measure: called after every pass.

    Returns:
        The model, its tokenizer, and what was measured after each pass.

    Raises:
        CheckpointError: the checkpoint is damaged, or another recipe's.
        ModelError: the loss is not finite.
    """

    def drawn(epoch: int) -> list[Document]:
        return corpus.epoch(recipe.seed + epoch, share_of_exclusions=recipe.exclusions, share_of_retold=recipe.retold)

    first = drawn(0)
    tokenizer = start[1] if start else train_tokenizer(first, recipe.vocabulary, recipe.positions)
    rows = Rows(tokenizer, recipe)
    model = start[0] if start else new_model(recipe, rows.end)
    model.train().requires_grad_(True)
    steps = recipe.epochs * sum(1 for _ in rows.batches(first, 0))
    opts = optimizers(model, recipe)
    progress: dict[str, Any] = {"epochs": 0, "steps": 0, "history": []}
    if checkpoint.is_file():
        progress = load_checkpoint(checkpoint, model, opts, settings)
    step, history = progress["steps"], progress["history"]
    began = time.monotonic() - (60 * history[-1]["minutes"] if history else 0)
    for epoch in range(progress["epochs"], recipe.epochs):
        for ids, labels, positions in rows.batches(drawn(epoch), recipe.seed + epoch):
            if step == steps:
                break  # an epoch is drawn at random; the count of its batches varies by a few
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = answer_loss(model, ids, labels, positions)
            if not math.isfinite(loss.item()):
                raise ModelError(
                    f"step {step}: the loss is {loss.item()}; lower model.matrix_learning_rate or model.learning_rate"
                )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in opts:
                for group in optimizer.param_groups:
                    group["lr"] = optimizer.defaults["lr"] * rate(step, steps, recipe)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            on_step(step, steps, loss.item())
            step += 1
        model.eval()
        found = measure(model, tokenizer)
        model.train()
        minutes = round((time.monotonic() - began) / 60, 1)
        history.append({"epoch": epoch + 1, "loss": round(loss.item(), 4), "minutes": minutes, **found})
        logger.warning("pass %d: %s", epoch + 1, history[-1])
        progress = {"epochs": epoch + 1, "steps": step, "history": history}
        save_checkpoint(checkpoint, model, opts, progress, settings)
    return model.eval(), tokenizer, history


@torch.no_grad()
def recall(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, documents: Sequence[Document]) -> float:
    """Share of documents whose whole answer is the model's first choice, token by token."""
    text = TextEncoder(tokenizer, model.config.n_positions)
    right = 0
    for start in range(0, len(documents), 256):
        queries = [text.encode_pair(d.prompt, d.answer) for d in documents[start : start + 256]]
        batch = pad(queries, text.pad_id)
        hidden = model.transformer(input_ids=batch.ids, use_cache=False).last_hidden_state
        hits = model.lm_head(hidden[batch.predicts]).argmax(-1) == batch.labels
        wrong_rows = batch.rows[~hits].unique()
        right += len(queries) - len(wrong_rows)
    return right / len(documents)
