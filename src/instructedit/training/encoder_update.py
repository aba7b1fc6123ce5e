"""Further training of a trained instruction encoder: what it misreads is corrected, the rest stays.

With e the embeddings of drawn instructions as the encoder is, and m_s their mean over those of scope s, an instruction
of scope s is read right if m_s is the nearest of the means. The encoder is then trained by

    L = mean |e'(text) - target(text)|^2,    target = e(text) if it was read right, else m_s,

so the hypernetwork, which was trained with the old embeddings, finds the new texts where it expects their scope.
Texts of scopes that the training has no task of can be read as one that it has: an editor that was not trained to
change aliases does no harm where it changes the named subject only.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from instructedit.editors.instruction_encoders import InstructionEncoder
from instructedit.errors import DataError
from instructedit.instructions.grammar import parts_of, scope_grammar
from instructedit.instructions.templates import NEUTRAL_NAME
from instructedit.models.language_model import LanguageModel
from instructedit.tasks.loading import free_text_task
from instructedit.tasks.task import Task
from instructedit.training.instruction_noise import with_text_noise
from instructedit.training.recipe import EncoderUpdate, InstructionNoise
from instructedit.training.warmup import Labelled, draw_labelled, embeddings, minimise, scope_of

#: Share of the drawn texts that are of scopes without a task.
WITHOUT_TASK = 0.25
WEIGHT_DECAY = 0.1


def update_encoder(
    encoder: InstructionEncoder,
    language_model: LanguageModel,
    tasks: Sequence[Task],
    settings: EncoderUpdate,
    scope_template_share: float,
    seed: int,
    noise: InstructionNoise,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> tuple[float, float]:
    """Train the encoder in place, and leave it trainable or not as it was.

    Args:
        encoder: that has been trained.
        language_model: the base model, which tokenises instructions.
        tasks: whose instructions are drawn.
        settings: steps, batch, rates, and scopes without a task.
        scope_template_share: share of a task's instructions drawn from the templates of its scope.
        seed: decides all draws.
        noise: on the instructions.
        on_step: called with the step and its loss.

    Returns:
        The share of the drawn instructions that are read right, before and after.

    Raises:
        DataError: ``read_as`` names a scope that no task has, or one that has no templates.
    """
    rng = random.Random(f"{seed}-encoder-update")
    by_scope = {scope_of(task): [other for other in tasks if scope_of(other) == scope_of(task)] for task in tasks}
    drawn = [_draw(by_scope, settings, rng, scope_template_share, noise) for _ in range(settings.texts)]
    texts, scopes = [text for text, _ in drawn], [" + ".join(labels) for _, labels in drawn]
    names = sorted(set(scopes))
    own = torch.tensor([names.index(scope) for scope in scopes])
    trainable = [p.requires_grad for p in encoder.parameters()]
    with encoder.cached(language_model):
        before = embeddings(encoder, language_model, texts).cpu()
        means = torch.stack([before[own == index].mean(0) for index in range(len(names))])
        right = torch.cdist(before, means).argmin(1) == own
        target = torch.where(right[:, None], before, means[own])
        pools = [pool for pool in (right.nonzero()[:, 0].tolist(), (~right).nonzero()[:, 0].tolist()) if pool]
        encoder.requires_grad_(True)
        torch.manual_seed(seed)
        encoder.train()

        def loss_of_batch() -> Tensor:
            chosen = [index for pool in pools for index in rng.choices(pool, k=settings.batch // len(pools))]
            embedded = encoder(language_model, [texts[index] for index in chosen])
            loss: Tensor = (embedded - target[chosen].to(embedded)).square().sum(1).mean()
            return loss

        minimise(loss_of_batch, [*encoder.parameters()], settings.steps, settings.learning_rate, WEIGHT_DECAY, on_step)
        after = embeddings(encoder, language_model, texts).cpu()
    for parameter, was_trainable in zip(encoder.parameters(), trainable, strict=True):
        parameter.requires_grad_(was_trainable)
    read = torch.cdist(after, means).argmin(1) == own
    return right.float().mean().item(), read.float().mean().item()


def _draw(
    by_scope: Mapping[str, Sequence[Task]],
    settings: EncoderUpdate,
    rng: random.Random,
    scope_share: float,
    noise: InstructionNoise,
) -> Labelled:
    """Return an instruction and its scope: every scope of a task as often as the others."""
    if settings.read_as and rng.random() < WITHOUT_TASK:
        scope = rng.choice(sorted(settings.read_as))
        read_as = settings.read_as[scope]
        if read_as not in by_scope:
            raise DataError(
                f"no task of the training has the scope {read_as!r}; it has {', '.join(sorted(by_scope))}",
                field="encoder_update.read_as",
            )
        template = scope_grammar().draw(scope, rng, noise.kinds)
        instruction = free_text_task().instructions.render(template, name=NEUTRAL_NAME)
        return with_text_noise(instruction, noise, rng), parts_of(read_as)
    return draw_labelled(rng.choice(by_scope[rng.choice(sorted(by_scope))]), rng, scope_share, noise)
