"""Teaching the instruction encoder to tell scopes apart before it conditions anything."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional

from instructedit.editors.instruction_encoders import InstructionEncoder
from instructedit.instructions.grammar import parts_of
from instructedit.models.language_model import LanguageModel
from instructedit.records import EditRequest
from instructedit.tasks.task import Task
from instructedit.training.recipe import EncoderWarmup


def warm_up_encoder(
    encoder: InstructionEncoder,
    language_model: LanguageModel,
    tasks: Sequence[Task],
    recipe: EncoderWarmup,
    wordings: float,
    seed: int,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> float:
    """Train the encoder to tell the scopes of instructions; returns the accuracy over the last 50 steps.

    Tasks of one scope are one: an unseen task's text should land on the code of the scope that it describes, not on
    that of the task whose name it resembles. A text of two scopes is to be told as both, each as if it were alone.
    A task without a scope has one of its own.
    """
    scopes = sorted({_scope(task) for task in tasks})
    parts = sorted({part for scope in scopes for part in parts_of(scope)})
    told = torch.tensor([[float(part in parts_of(scope)) for part in parts] for scope in scopes])
    classifier = nn.Linear(encoder.width, len(parts)).to(language_model.device)
    parameters = [p for p in (*encoder.parameters(), *classifier.parameters()) if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    rng = random.Random(f"{seed}-encoder")
    torch.manual_seed(seed)
    encoder.train()
    hits: list[float] = []
    for step in range(recipe.steps):
        chosen = [
            rng.choice([task for task in tasks if _scope(task) == scope])
            for scope in rng.choices(scopes, k=recipe.batch)
        ]
        texts = [_text(task, rng, wordings) for task in chosen]
        labels = told[[scopes.index(_scope(task)) for task in chosen]]
        fall = min(1.0, (step + 1) / 50, 3 * (recipe.steps - step) / recipe.steps)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * fall
        scores = classifier(encoder(language_model, texts))
        labels = labels.to(scores.device)
        loss = functional.binary_cross_entropy_with_logits(scores, labels, reduction="sum") / len(texts)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        hits.append(((scores > 0) == labels.bool()).all(-1).float().mean().item())
        on_step(step, loss.item())
    recent = hits[-50:]
    return sum(recent) / len(recent) if recent else 0.0


def _scope(task: Task) -> str:
    return task.instructions.scope or task.name


def _text(task: Task, rng: random.Random, wordings: float) -> str:
    request = EditRequest(
        prompt="-",
        target="-",
        subject=rng.choice(("it", "them", "the topic")),
        label=rng.choice(("positive", "negative")),
    )
    return task.instructions.draw_for_training(request, rng, wordings)
