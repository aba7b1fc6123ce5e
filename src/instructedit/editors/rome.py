"""ROME: one fact as a rank-one change of one MLP.

Meng et al., "Locating and Editing Factual Associations in GPT" (NeurIPS 2022). The MLP's last matrix W is read as a
memory of keys and values, v = k W. For a subject's key k* and the value v* that makes the model say the target, the
change that keeps all other keys' values as well as it can is (their equation 2)

    D = (C^-1 k*)^T (v* - k* W) / (k* C^-1 k*),        C = E[k^T k] over ordinary text.

k* is the mean input of W at the subject's last token behind several prefixes; v* minimises

    -log p(y | x; v)  +  kl * KL(before || after | "<subject> is a")  +  decay * |v - v0|^2 / |v0|^2      (equation 4)

with |v - v0| at most ``reach`` times |v0|. All edits of a batch are optimised at once; they do not meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from instructedit.deltas.delta import DeltaBatch, LowRank
from instructedit.editors.base import DirectEditor, register
from instructedit.editors.direct import at_tokens, last_mlp_matrix
from instructedit.editors.key_statistics import second_moment
from instructedit.editors.signals import edit_loss
from instructedit.errors import EditorError
from instructedit.models.hooks import removed_on_exit
from instructedit.models.language_model import LanguageModel
from instructedit.models.structure import Matrix
from instructedit.models.text import pad
from instructedit.records import EditRequest


class RomeConfig(BaseModel):
    """ROME's numbers; the defaults are the best of ten trials on the bundled base model, the prefixes our own.

    Published for GPT2-XL: 20 steps, decay 0.5, reach 4, block 17 of 48.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    block: int | None = Field(None, ge=0, description="whose MLP is changed; None takes the middle one")
    steps: int = Field(40, ge=1, description="of Adam, for v*")
    learning_rate: float = Field(0.5, gt=0)
    kl: float = Field(0.0625, ge=0)
    decay: float = Field(0.1, ge=0)
    reach: float = Field(8.0, gt=0, description="of v* from v0, in lengths of v0")
    ridge: float = Field(1e-2, gt=0, description="added to C's diagonal, times its mean")
    sentences: int = Field(3000, ge=1, description="of text for C")
    prefixes: tuple[str, ...] = Field(
        ("", "As we know, ", "In the news today: ", "Here is what I remember. "), min_length=1
    )


@register("rome")
class Rome(DirectEditor):
    """Rank-one model editing.

    Args:
        config: its numbers.
        matrix: the MLP's last one.
        split_layer: its block.
    """

    Config = RomeConfig

    def __init__(self, config: RomeConfig, matrix: Matrix, split_layer: int) -> None:
        super().__init__()
        self.config = config
        self.matrix = matrix
        self.split_layer = split_layer

    @classmethod
    def create(cls, config: BaseModel, language_model: LanguageModel) -> Rome:
        """See :meth:`DirectEditor.create`."""
        assert isinstance(config, RomeConfig)
        block = len(language_model.structure.blocks) // 2 if config.block is None else config.block
        return cls(config, last_mlp_matrix(language_model, block), block)

    def edit(
        self, language_model: LanguageModel, requests: Sequence[EditRequest], instructions: Sequence[str | None]
    ) -> DeltaBatch:
        """See :meth:`Editor.edit`. Instructions are not read.

        Raises:
            EditorError: a request does not name its subject in its prompt.
        """
        values = Values(language_model, requests, self.config, self.split_layer)
        keys = values.keys(self.matrix.name)
        new = values.value(self.matrix.name) + values.shift(self.matrix.name)
        old = times_weight(language_model.model.get_submodule(self.matrix.name), keys)
        moment = regular_moment(language_model, self.matrix.name, self.config)
        away = torch.linalg.solve(moment, keys.T).T  # C^-1 k*, (edits, inputs)
        a = away / (away * keys).sum(-1, keepdim=True)
        factors = {self.matrix.name: LowRank(a[:, :, None], (new - old)[:, None, :])}
        return DeltaBatch(factors, {self.matrix.name: torch.ones(len(requests), dtype=torch.long, device=a.device)})


def regular_moment(language_model: LanguageModel, matrix: str, config: RomeConfig) -> Tensor:
    """C with the config's ridge on its diagonal, (inputs, inputs)."""
    moment = second_moment(language_model, matrix, config.sentences)
    return moment + config.ridge * moment.diagonal().mean() * torch.eye(len(moment), device=moment.device)


def times_weight(module: nn.Module, keys: Tensor) -> Tensor:
    """k W and the bias, (edits, outputs)."""
    assert isinstance(module.weight, Tensor)
    values = keys @ (module.weight.T if isinstance(module, nn.Linear) else module.weight).float()
    return values + module.bias.float() if isinstance(module.bias, Tensor) else values


class Values:
    """What a batch of requests reads and writes at its subjects' last tokens.

    Every request stands in the batch once behind each prefix, and once as "<subject> is", whose answer is to stay.

    Args:
        split_layer: block below which nothing is read or written.

    Raises:
        EditorError: a request does not name its subject in its prompt.
    """

    def __init__(
        self, language_model: LanguageModel, requests: Sequence[EditRequest], config: RomeConfig, split_layer: int
    ) -> None:
        self.language_model, self.config, self.count = language_model, config, len(requests)
        self.requests = tuple(requests)
        text, device = language_model.text, language_model.device
        asked = [(prefix + request.prompt, request) for request in requests for prefix in config.prefixes]
        kept = [(f"{request.subject} is", request) for request in requests]
        queries = [text.encode_pair(prompt, request.target) for prompt, request in asked]
        queries += [text.encode_pair(prompt, "a") for prompt, _ in kept]
        batch = pad(queries, text.pad_id).to(device)
        places = [subject_token(language_model, prompt, request) for prompt, request in (*asked, *kept)]
        self.places = torch.tensor(places, device=device)
        edits = torch.arange(self.count, device=device)
        self.owner = torch.cat((edits.repeat_interleave(len(config.prefixes)), edits))
        self.rows = torch.arange(len(batch), device=device)
        self.is_asked = self.rows < len(asked)
        self.split = language_model.split(split_layer)
        self.state = self.split.trunk(batch)

    def keys(self, matrix: str, changes: DeltaBatch | None = None) -> Tensor:
        """k*: the matrix's input, mean over the prefixes, (edits, inputs)."""
        found = self._read(matrix, changes, of_input=True)
        return found[self.is_asked].view(self.count, len(self.config.prefixes), -1).mean(1)

    def value(self, module: str, changes: DeltaBatch | None = None) -> Tensor:
        """A module's output behind the first prefix, (edits, outputs)."""
        found = self._read(module, changes, of_input=False)
        return found[self.is_asked].view(self.count, len(self.config.prefixes), -1)[:, 0]

    def shift(self, matrix: str) -> Tensor:
        """v* - v0 at a matrix's output, (edits, outputs): equation 4.

        Raises:
            EditorError: what is written at the subject does not reach a request's answer.
        """
        batch, config = self.state.batch, self.config
        first = self.value(matrix)
        shift = torch.zeros_like(first, requires_grad=True)
        optimizer = torch.optim.Adam([shift], lr=config.learning_rate)
        size = first.norm(dim=-1, keepdim=True)
        label_kept = ~self.is_asked[batch.rows]
        with torch.no_grad():
            before = self.split.top(self.state).float()[label_kept].log_softmax(-1)
        for step in range(config.steps):
            with torch.enable_grad(), self._writing(matrix, shift):
                logits = self.split.top(self.state)
                loss = edit_loss(logits, batch)[self.is_asked].sum() / len(config.prefixes)
                if step == 0:
                    (own,) = torch.autograd.grad(loss, [shift], retain_graph=True)
                    self._refuse_silence(matrix, own)
                after = logits.float()[label_kept].log_softmax(-1)
                moved = functional.kl_div(after, before, log_target=True, reduction="none").sum()
                decay = (shift.norm(dim=-1, keepdim=True) / size).square().sum()
                optimizer.zero_grad()
                (loss + config.kl * moved + config.decay * decay).backward()
            optimizer.step()
            with torch.no_grad():
                shift *= (config.reach * size / shift.norm(dim=-1, keepdim=True).clamp_min(1e-8)).clamp(max=1.0)
        return shift.detach()

    def _refuse_silence(self, matrix: str, gradient: Tensor) -> None:
        """The edit loss's own gradient, (edits, outputs), has to be there: Adam would follow the rounding noise of KL.

        Raises:
            EditorError: it is exactly zero for a request.
        """
        silent = (gradient == 0).all(-1).nonzero().flatten().tolist()
        if silent:
            block = self.language_model.structure.block_of(matrix)
            request = self.requests[silent[0]]
            raise EditorError(
                f"what is written at the subject {request.subject!r} in block {block} does not reach the answer of "
                f"{request.prompt!r} (request {silent[0] + 1} of {self.count}): no attention above that block looks "
                "from the answer back to the subject, or the answer is certain already. Choose a lower `block`, or a "
                "prompt that is shorter than the model's attention window"
            )

    @torch.no_grad()
    def _read(self, name: str, changes: DeltaBatch | None, of_input: bool) -> Tensor:
        """(rows, width) what flows into or out of a module at the subjects' tokens."""
        found: list[Tensor] = []

        def keep(module: nn.Module, args: tuple[Tensor, ...], output: Any) -> None:
            x = args[0] if of_input else output[0] if isinstance(output, tuple) else output
            found.append(at_tokens(x, self.places).float().to(self.places.device))

        # The changes' hooks come first, so that what is read has passed them.
        attached = nullcontext() if changes is None else changes.attached(self.language_model, self.owner)
        with attached, removed_on_exit(self.language_model.model.get_submodule(name).register_forward_hook(keep)):
            self.split.top(self.state)
        return found[0]

    def _writing(self, name: str, shift: Tensor) -> AbstractContextManager[None]:
        """Inside the ``with`` every edit's shift is added to a matrix's output at its rows' tokens."""

        def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            flat = output.view(len(self.rows), -1, output.shape[-1])
            added = shift[self.owner].to(output.device, output.dtype)
            where = (self.rows.to(output.device), self.places.to(output.device))
            return flat.index_put(where, added, accumulate=True).view_as(output)

        return removed_on_exit(self.language_model.model.get_submodule(name).register_forward_hook(add))


def subject_token(language_model: LanguageModel, prompt: str, request: EditRequest) -> int:
    """Position of the last token of the request's subject in ``prompt``.

    Raises:
        EditorError: the prompt does not contain the subject.
    """
    subject = request.subject
    start = prompt.rfind(subject) if subject else -1
    if not subject or start < 0:
        raise EditorError(f"rome needs the subject inside the prompt; it is {subject!r}, the prompt {request.prompt!r}")
    return len(language_model.text.encode_prompt(prompt[: start + len(subject)]).ids) - 1
