"""The last subject token of a request: what ROME and MEMIT read there, and the value that they optimise there.

Both write at the subject's last token. The value v* of a matrix's output there that makes the model answer with the
target minimises

    -log p(y | x; v)  +  kl * KL(before || after | "<subject> is")  +  decay * |v - v0|^2 / |v0|^2    (ROME, equation 4)

with |v - v0| at most ``clamp_norm_factor`` times |v0|. All edits of a batch are optimised at once, independently.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from instructedit.deltas.delta import DeltaBatch
from instructedit.editors.base import EditorConfig
from instructedit.editors.direct import at_tokens
from instructedit.editors.signals import edit_loss
from instructedit.errors import EditorError
from instructedit.models.hooks import removed_on_exit
from instructedit.models.language_model import LanguageModel
from instructedit.models.text import pad
from instructedit.records import EditRequest


class SubjectValueConfig(EditorConfig):
    """Hyperparameters of v*, and of the covariance of keys; the prefixes are our own."""

    block: int | None = Field(None, ge=0, description="whose MLP is changed")
    steps: int = Field(20, ge=1, description="steps of Adam for v*")
    learning_rate: float = Field(0.5, gt=0, description="of Adam")
    kl: float = Field(0.0625, ge=0, description="weight of the KL divergence after '<subject> is'")
    decay: float = Field(0.1, ge=0, description="weight of |v - v0|^2 / |v0|^2")
    clamp_norm_factor: float = Field(4.0, gt=0, description="largest |v* - v0|, in units of |v0|")
    ridge: float = Field(1e-2, gt=0, description="added to the diagonal of C, in units of the diagonal's mean")
    sentences: int = Field(3000, ge=1, description="of text from which C is computed")
    prefixes: tuple[str, ...] = Field(
        ("", "As we know, ", "In the news today: ", "Here is what I remember. "),
        min_length=1,
        description="texts before the prompt, over which k* is averaged",
    )


class SubjectActivations:
    """The activations of a batch of requests at their subjects' last tokens.

    Every request is in the batch once with each prefix, and once as "<subject> is", whose answer is to stay.

    Args:
        language_model: the base model.
        requests: the edits.
        config: prefixes, and how v* is optimised.
        split_layer: block below which nothing is read or written.

    Raises:
        EditorError: a request does not name its subject in its prompt.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        requests: Sequence[EditRequest],
        config: SubjectValueConfig,
        split_layer: int,
    ) -> None:
        self.language_model, self.config, self.count = language_model, config, len(requests)
        self.requests = tuple(requests)
        text, device = language_model.text, language_model.device
        edit_prompts = [(prefix + request.prompt, request) for request in requests for prefix in config.prefixes]
        kl_prompts = [(f"{request.subject} is", request) for request in requests]
        queries = [text.encode_pair(prompt, request.target) for prompt, request in edit_prompts]
        queries += [text.encode_pair(prompt, "a") for prompt, _ in kl_prompts]
        batch = pad(queries, text.pad_id).to(device)
        positions = [subject_token(language_model, *prompt) for prompt in (*edit_prompts, *kl_prompts)]
        self.token_positions = torch.tensor(positions, device=device)
        edits = torch.arange(self.count, device=device)
        self.edit_of_row = torch.cat((edits.repeat_interleave(len(config.prefixes)), edits))
        self.rows = torch.arange(len(batch), device=device)
        self.is_edit_prompt = self.rows < len(edit_prompts)
        self.split = language_model.split(split_layer)
        self.state = self.split.trunk(batch)

    def keys(self, matrix: str, changes: DeltaBatch | None = None) -> Tensor:
        """Return k*, the matrix's input, mean over the prefixes, (edits, inputs).

        Args:
            matrix: name of the module.
            changes: deltas under which it is read; None reads the base model.
        """
        inputs = self._read(matrix, changes, of_input=True)
        return inputs[self.is_edit_prompt].view(self.count, len(self.config.prefixes), -1).mean(1)

    def outputs(self, module: str, changes: DeltaBatch | None = None) -> Tensor:
        """Return a module's output behind the first prefix, (edits, outputs); arguments as of :meth:`keys`."""
        outputs = self._read(module, changes, of_input=False)
        return outputs[self.is_edit_prompt].view(self.count, len(self.config.prefixes), -1)[:, 0]

    def optimal_shift(self, matrix: str) -> Tensor:
        """Return v* - v0 at a matrix's output, (edits, outputs): ROME's equation 4.

        Raises:
            EditorError: the output at the subject has no influence on a request's answer.
        """
        batch, config = self.state.batch, self.config
        v0 = self.outputs(matrix)
        shift = torch.zeros_like(v0, requires_grad=True)
        optimizer = torch.optim.Adam([shift], lr=config.learning_rate)
        v0_norm = v0.norm(dim=-1, keepdim=True)
        is_kl_label = ~self.is_edit_prompt[batch.rows]
        with torch.no_grad():
            before = self.split.top(self.state).float()[is_kl_label].log_softmax(-1)
        for step in range(config.steps):
            with torch.enable_grad(), self._shifted(matrix, shift):
                logits = self.split.top(self.state)
                loss = edit_loss(logits, batch)[self.is_edit_prompt].sum() / len(config.prefixes)
                if step == 0:
                    (gradient,) = torch.autograd.grad(loss, [shift], retain_graph=True)
                    self._check_gradient(matrix, gradient)
                after = logits.float()[is_kl_label].log_softmax(-1)
                kl = functional.kl_div(after, before, log_target=True, reduction="none").sum()
                decay = (shift.norm(dim=-1, keepdim=True) / v0_norm).square().sum()
                optimizer.zero_grad()
                (loss + config.kl * kl + config.decay * decay).backward()
            optimizer.step()
            with torch.no_grad():
                norm = shift.norm(dim=-1, keepdim=True).clamp_min(1e-8)
                shift *= (config.clamp_norm_factor * v0_norm / norm).clamp(max=1.0)
        return shift.detach()

    def _check_gradient(self, matrix: str, gradient: Tensor) -> None:
        """Check that the edit loss has a gradient: without one, Adam would follow the rounding noise of the KL term.

        Args:
            matrix: name of the module.
            gradient: of the edit loss at its output, (edits, outputs).

        Raises:
            EditorError: it is exactly zero for a request.
        """
        without = (gradient == 0).all(-1).nonzero().flatten().tolist()
        if without:
            block = self.language_model.structure.block_of(matrix)
            request = self.requests[without[0]]
            raise EditorError(
                f"request {without[0] + 1} of {self.count}: a change at the subject {request.subject!r} in "
                f"block {block} does not affect the answer to {request.prompt!r}, because no attention layer above the "
                "block connects them, or because the loss is already zero. Choose a lower `block`, or a prompt that is "
                "shorter than the model's attention window"
            )

    @torch.no_grad()
    def _read(self, name: str, changes: DeltaBatch | None, of_input: bool) -> Tensor:
        """Return a module's input or output at the subjects' tokens, (rows, width)."""
        observed: list[Tensor] = []

        def keep(module: nn.Module, args: tuple[Tensor, ...], output: Any) -> None:
            x = args[0] if of_input else output[0] if isinstance(output, tuple) else output
            observed.append(at_tokens(x, self.token_positions).float().to(self.token_positions.device))

        # The hooks of the changes are registered first, so that what is read includes them.
        attached = nullcontext() if changes is None else changes.attached(self.language_model, self.edit_of_row)
        with attached, removed_on_exit(self.language_model.model.get_submodule(name).register_forward_hook(keep)):
            self.split.top(self.state)
        return observed[0]

    def _shifted(self, name: str, shift: Tensor) -> AbstractContextManager[None]:
        """Return a context in which every edit's shift is added to a matrix's output at its rows' subject tokens."""

        def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            flat = output.view(len(self.rows), -1, output.shape[-1])
            added = shift[self.edit_of_row].to(output.device, output.dtype)
            index = (self.rows.to(output.device), self.token_positions.to(output.device))
            return flat.index_put(index, added, accumulate=True).view_as(output)

        return removed_on_exit(self.language_model.model.get_submodule(name).register_forward_hook(add))


def subject_token(language_model: LanguageModel, prompt: str, request: EditRequest) -> int:
    """Return the position of the last token of the request's subject in ``prompt``.

    Raises:
        EditorError: the prompt does not contain the subject.
    """
    subject = request.subject
    start = prompt.rfind(subject) if subject else -1
    if not subject or start < 0:
        raise EditorError(
            f"rome and memit need a subject that occurs in the prompt; the subject is {subject!r}, the prompt "
            f"{request.prompt!r}"
        )
    return len(language_model.text.encode_prompt(prompt[: start + len(subject)]).ids) - 1
