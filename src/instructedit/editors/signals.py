"""The signals of an edit: the inputs of the edited matrices, and the loss gradient at their outputs.

For the loss -log p(target | prompt) at the unedited model, the gradient of a matrix W in y = x W is the sum over
tokens of the outer products u^T delta, with u the input x and delta the gradient at y (MEND, section 3; the
paper's u_l and delta_{l+1}). A token whose delta is zero adds nothing and is left out: in the last block
only the positions that predict the target are left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from instructedit.editors.contrast import OtherInputs
from instructedit.editors.null_space import SimilarInputs
from instructedit.errors import EditorError
from instructedit.models.finite import finite
from instructedit.models.hooks import removed_on_exit
from instructedit.models.language_model import LanguageModel
from instructedit.models.split import TrunkState
from instructedit.models.structure import Matrix
from instructedit.models.text import TokenBatch

#: Gradients of a mean loss are about 1e-3 and less, float16 begins to lose bits at 6e-5; a power of 2 changes none.
FLOAT16_SCALE = 2.0**8


@dataclass(frozen=True)
class Signal:
    """One matrix's tokens with a gradient, of all edits of a batch.

    Attributes:
        u: (tokens, inputs).
        delta: (tokens, outputs).
        edit: (tokens,) index of the edit that a token belongs to; ascending.
        other_u: (tokens, inputs) u with another subject in the prompt, zero where there is none; None if it was not
            read. See :mod:`instructedit.editors.contrast`.
        similar_u: (edits, keys, inputs) the inputs with similar subjects in the prompt, of all tokens, zero where an
            edit has fewer; None if they were not read. See :mod:`instructedit.editors.null_space`.
    """

    u: Tensor
    delta: Tensor
    edit: Tensor
    other_u: Tensor | None = None
    similar_u: Tensor | None = None


def edit_loss(logits: Tensor, batch: TokenBatch, average: bool = True) -> Tensor:
    """Return the mean (or sum) over each row's target tokens of -log p(token), (rows,)."""
    losses = functional.cross_entropy(logits.float(), batch.labels, reduction="none")
    total = torch.zeros(len(batch), device=losses.device).index_add(0, batch.rows, losses)
    return total / torch.bincount(batch.rows, minlength=len(batch)) if average else total


def read_signals(
    language_model: LanguageModel,
    state: TrunkState,
    split_layer: int,
    matrices: Sequence[Matrix],
    average: bool = True,
    others: OtherInputs | None = None,
    similar: SimilarInputs | None = None,
) -> dict[str, Signal]:
    """Return the signals of a batch of edits, one edit a row: one forward and one backward pass through the top.

    Rows are independent inside the model, so the sum of their losses gives each row its own gradient.

    Half precision loses small numbers, and float16 has few exponents: there the loss is multiplied by
    :data:`FLOAT16_SCALE` before its gradient is taken, and signals are returned in float32.

    Args:
        language_model: the base model.
        state: the trunk's state of the edits.
        split_layer: the block at which the top begins.
        matrices: the edited matrices.
        average: over the target's tokens, as MEND has it: a long target's tokens then each leave a weaker signal than
            a short one's. Else the losses of the tokens are summed.
        others: inputs of the matrices with another subject, which are added to the signals.
        similar: inputs of the matrices with similar subjects, likewise.

    Raises:
        EditorError: a matrix was not reached, or an edit's gradient is zero or not finite there.
    """
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            if not output.requires_grad:  # the lowest edited matrix: nothing below it is differentiated
                output.requires_grad_(True)
            inputs[name], outputs[name] = args[0].detach(), output

        return hook

    with language_model.lock, torch.enable_grad(), ExitStack() as stack:
        for matrix in matrices:
            module = language_model.model.get_submodule(matrix.name)
            stack.enter_context(removed_on_exit(module.register_forward_hook(keep(matrix.name))))
        logits = language_model.split(split_layer).top(state)
        missing = [matrix.name for matrix in matrices if matrix.name not in outputs]
        if missing:
            raise EditorError(f"the forward pass does not use {', '.join(missing)}; choose other matrices to edit")
        loss = edit_loss(logits, state.batch, average).sum()
        half = any(output.dtype is torch.float16 for output in outputs.values())
        gradients = torch.autograd.grad(
            loss * FLOAT16_SCALE if half else loss, [outputs[m.name] for m in matrices], allow_unused=True
        )
    signals = {}
    for matrix, gradient in zip(matrices, gradients, strict=True):
        if gradient is None:
            raise EditorError(
                f"no gradient reaches {matrix.name}; the loss does not depend on it, so choose other matrices to edit"
            )
        # Some families flatten rows and positions before their MLP.
        u, delta = (t.reshape(*state.batch.mask.shape, -1) for t in (inputs[matrix.name], gradient))
        if half:
            u, delta = u.float(), delta.float() / FLOAT16_SCALE
        other_u = None if others is None else others[matrix.name]
        signal = _tokens_with_gradient(matrix.name, u, delta, state.batch, other_u)
        signals[matrix.name] = signal if similar is None else replace(signal, similar_u=similar[matrix.name])
    return signals


def _tokens_with_gradient(
    name: str, u: Tensor, delta: Tensor, batch: TokenBatch, other_u: Tensor | None = None
) -> Signal:
    """Return the signal of the tokens whose delta is not zero; u and delta are (rows, tokens, width).

    Raises:
        EditorError: an edit has no such token, or a number is not finite.
    """
    u = u.to(delta.device)  # a layer's input may come from another device than the layer's own
    used = batch.mask.to(delta.device) & (delta != 0).any(-1)  # a NaN is not zero, so the check below sees it
    without = (~used.any(1)).nonzero().flatten().tolist()
    if without:
        raise EditorError(
            f"the gradient at {name} is exactly zero for edits {without[:10]} of the batch: their loss is "
            "already zero, or their prompts do not use this matrix. Choose another target or another matrix"
        )
    others = None if other_u is None else other_u.to(u.device, u.dtype)[used]
    signal = Signal(u[used], delta[used], used.nonzero()[:, 0], others)
    if not (finite(signal.delta) and finite(signal.u)):
        raise EditorError(
            f"the signals at {name} are not finite; load the base model in float32 or bfloat16 instead of float16"
        )
    return signal
