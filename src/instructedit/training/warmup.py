"""Warm-up of the instruction encoder: it learns to classify scopes before it conditions the editor."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from fractions import Fraction

import torch
from torch import Tensor, nn
from torch.nn import functional

from instructedit.editors.instruction_encoders import InstructionEncoder
from instructedit.instructions.grammar import parts_of
from instructedit.models.language_model import LanguageModel
from instructedit.records import EditRequest
from instructedit.tasks.task import Task
from instructedit.training.instruction_noise import silent_instruction, with_text_noise
from instructedit.training.mixture import NO_NOISE
from instructedit.training.recipe import EncoderWarmup, InstructionNoise
from instructedit.training.schedule import learning_rate_factor

WARMUP_STEPS = 50
COOLDOWN_FRACTION = Fraction(1, 3)
#: Texts of which :func:`embeddings` passes so many at a time.
TEXTS_AT_ONCE = 64
#: An instruction and its scopes.
Labelled = tuple[str, list[str]]
#: Accuracy is reported over that many last steps.
REPORTED_STEPS = 50


def warm_up_encoder(
    encoder: InstructionEncoder,
    language_model: LanguageModel,
    tasks: Sequence[Task],
    settings: EncoderWarmup,
    scope_template_share: float,
    seed: int,
    noise: InstructionNoise = NO_NOISE,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> float:
    """Train the encoder, with a linear classifier on top, to predict the scope of an instruction.

    Tasks of one scope share a class: an instruction of an unseen task should be embedded by the scope that it
    describes, not by the task whose name it resembles. An instruction of two scopes carries both labels, one that says
    nothing about an edit carries none. A task without a scope is a class of its own.

    Args:
        encoder: Is trained in place.
        language_model: The base model, which tokenises instructions.
        tasks: Whose instructions are drawn.
        settings: Steps, batch and rates.
        scope_template_share: Share of instructions drawn from the templates of the task's scope.
        seed: Decides all draws.
        noise: On the instructions.
        on_step: Called with the step and its loss.

    Returns:
        Share of instructions with all labels right, over the last :data:`REPORTED_STEPS` steps.
    """
    scopes = sorted({scope_of(task) for task in tasks})
    classes = sorted({part for scope in scopes for part in parts_of(scope)})
    classifier = nn.Linear(encoder.width, len(classes)).to(language_model.device)
    parameters = [p for p in (*encoder.parameters(), *classifier.parameters()) if p.requires_grad]
    rng = random.Random(f"{seed}-encoder")

    def draw(count: int) -> list[Labelled]:
        batch = [rng.choice([t for t in tasks if scope_of(t) == scope]) for scope in rng.choices(scopes, k=count)]
        return [draw_labelled(task, rng, scope_template_share, noise) for task in batch]

    torch.manual_seed(seed)
    encoder.train()
    accuracies: list[float] = []
    with encoder.cached(language_model):
        pool = draw(settings.texts) if settings.texts is not None else None

        def loss_of_batch() -> Tensor:
            batch = draw(settings.batch) if pool is None else rng.choices(pool, k=settings.batch)
            labels = torch.tensor([[float(part in scopes) for part in classes] for _, scopes in batch])
            logits = classifier(encoder(language_model, [instruction for instruction, _ in batch]))
            labels = labels.to(logits.device)
            accuracies.append(((logits > 0) == labels.bool()).all(-1).float().mean().item())
            return functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / len(batch)

        minimise(loss_of_batch, parameters, settings.steps, settings.learning_rate, settings.weight_decay, on_step)
    recent = accuracies[-REPORTED_STEPS:]
    return sum(recent) / len(recent) if recent else 0.0


def minimise(
    loss_of_batch: Callable[[], Tensor],
    parameters: Sequence[nn.Parameter],
    steps: int,
    learning_rate: float,
    weight_decay: float,
    on_step: Callable[[int, float], None],
) -> None:
    """Take steps of AdamW with the schedule of an encoder's training.

    Args:
        loss_of_batch: draws a batch and returns its loss.
        parameters: are trained in place.
        steps: how many.
        learning_rate: the highest.
        weight_decay: of AdamW.
        on_step: called with the step and its loss.
    """
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
    for step in range(steps):
        factor = learning_rate_factor(step, steps, warmup_steps=WARMUP_STEPS, cooldown_fraction=COOLDOWN_FRACTION)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * factor
        loss = loss_of_batch()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        on_step(step, loss.item())


@torch.no_grad()
def embeddings(encoder: InstructionEncoder, language_model: LanguageModel, texts: Sequence[str]) -> Tensor:
    """Return the embeddings (texts, width), float32, without dropout; the encoder is left in evaluation mode."""
    encoder.eval()
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))  # texts of one length need no padding
    parts = [order[start : start + TEXTS_AT_ONCE] for start in range(0, len(order), TEXTS_AT_ONCE)]
    rows = torch.cat([encoder(language_model, [texts[index] for index in part]).float() for part in parts])
    return rows[torch.tensor(order, device=rows.device).argsort()]


def scope_of(task: Task) -> str:
    """Return the scope of a task's instructions; for a task without one its name."""
    return task.instructions.scope or task.name


def draw_labelled(task: Task, rng: random.Random, scope_template_share: float, noise: InstructionNoise) -> Labelled:
    """Return an instruction of the task, with its placeholders filled in for some request, and its scopes.

    An instruction that says nothing has no scope.
    """
    if noise.silent and rng.random() < noise.silent:
        return silent_instruction(rng), []
    request = EditRequest(
        prompt="-",
        target="-",
        subject=rng.choice(("it", "them", "the topic")),
        label=rng.choice(("positive", "negative")),
    )
    instruction = task.instructions.draw_for_training(request, rng, scope_template_share, noise.kinds)
    return with_text_noise(instruction, noise, rng), parts_of(scope_of(task))
