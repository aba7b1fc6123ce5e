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
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from instructedit.deltas.delta import DeltaBatch, LowRank
from instructedit.editors.base import DirectEditor, register
from instructedit.editors.key_statistics import second_moment
from instructedit.editors.signals import edit_loss
from instructedit.errors import EditorError
from instructedit.models.hooks import held
from instructedit.models.language_model import LanguageModel
from instructedit.models.split import SplitForward, TrunkState
from instructedit.models.structure import Matrix
from instructedit.models.text import pad
from instructedit.records import EditRequest


class RomeConfig(BaseModel):
    """ROME's numbers; the defaults are those published for GPT2-XL, the prefixes our own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    block: int | None = Field(None, ge=0, description="whose MLP is changed; None takes one third of the way up")
    steps: int = Field(20, ge=1, description="of Adam, for v*")
    learning_rate: float = Field(0.5, gt=0)
    kl: float = Field(0.0625, ge=0)
    decay: float = Field(0.5, ge=0)
    reach: float = Field(4.0, gt=0, description="of v* from v0, in lengths of v0")
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
        cut: its block.
    """

    Config = RomeConfig

    def __init__(self, config: RomeConfig, matrix: Matrix, cut: int) -> None:
        super().__init__()
        self.config = config
        self.matrix = matrix
        self.cut = cut

    @classmethod
    def create(cls, config: BaseModel, language_model: LanguageModel) -> Rome:
        """See :meth:`DirectEditor.create`."""
        assert isinstance(config, RomeConfig)
        structure = language_model.structure
        block = len(structure.blocks) // 3 if config.block is None else config.block
        if block >= len(structure.blocks):
            raise EditorError(f"block {block} is asked for, the model has {len(structure.blocks)}, counted from 0")
        return cls(config, [m for m in structure.mlps[block] if m.outputs == structure.hidden][-1], block)

    def edit(
        self, language_model: LanguageModel, requests: Sequence[EditRequest], instructions: Sequence[str | None]
    ) -> DeltaBatch:
        """See :meth:`Editor.edit`. Instructions are not read.

        Raises:
            EditorError: a request does not name its subject in its prompt.
        """
        moment = second_moment(language_model, self.matrix.name, self.config.sentences)
        ridge = self.config.ridge * moment.diagonal().mean() * torch.eye(len(moment), device=moment.device)
        keys, old, new = self._keys_and_values(language_model, requests)
        away = torch.linalg.solve(moment + ridge, keys.T).T  # C^-1 k*, (edits, inputs)
        a = away / (away * keys).sum(-1, keepdim=True)
        factors = {self.matrix.name: LowRank(a[:, :, None], (new - old)[:, None, :])}
        return DeltaBatch(factors, {self.matrix.name: torch.ones(len(requests), dtype=torch.long, device=a.device)})

    def _keys_and_values(
        self, language_model: LanguageModel, requests: Sequence[EditRequest]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """k* (edits, inputs), k* W and v* (edits, outputs)."""
        prefixes = self.config.prefixes
        prompts = [(prefix + request.prompt, request) for request in requests for prefix in prefixes]
        queries = [language_model.text.pair(prompt, request.target) for prompt, request in prompts]
        places = [subject_token(language_model, prompt, request) for prompt, request in prompts]
        essence = [EditRequest(prompt=f"{r.subject} is", target="a", subject=r.subject) for r in requests]
        kept = [language_model.text.pair(r.prompt, r.target) for r in essence]
        places += [subject_token(language_model, r.prompt, r) for r in essence]
        batch = pad([*queries, *kept], language_model.text.pad_id).to(language_model.device)
        split = language_model.split(self.cut)
        state = split.trunk(batch)
        where = torch.tensor(places, device=language_model.device)
        owner = torch.tensor([*(e for e in range(len(requests)) for _ in prefixes), *range(len(requests))])
        memory = _Memory(language_model.model.get_submodule(self.matrix.name), where, owner.to(where.device))
        with torch.no_grad(), memory.read():
            before = split.top(state).float().log_softmax(-1)
        asked = torch.arange(len(batch), device=where.device) < len(queries)
        count = len(requests)
        keys = torch.stack([memory.inputs[asked & (memory.owner == e)].mean(0) for e in range(count)])
        first = memory.outputs[asked].view(count, len(prefixes), -1)[:, 0]
        new = first + self._shift(split, state, memory, first, before, asked)
        weight = memory.module.weight
        assert isinstance(weight, Tensor)
        matrix = (weight.T if isinstance(memory.module, nn.Linear) else weight).float()
        bias = memory.module.bias
        old = keys @ matrix + (bias.float() if isinstance(bias, Tensor) else 0.0)
        return keys, old, new

    def _shift(
        self,
        split: SplitForward,
        state: TrunkState,
        memory: _Memory,
        first: Tensor,
        before: Tensor,
        asked: Tensor,
    ) -> Tensor:
        """v* - v0, (edits, outputs)."""
        batch, config = state.batch, self.config
        shift = torch.zeros_like(first, requires_grad=True)
        optimizer = torch.optim.Adam([shift], lr=config.learning_rate)
        size = first.norm(dim=-1, keepdim=True)
        prefixes = len(config.prefixes)
        label_asked = asked[batch.rows]
        for _ in range(config.steps):
            with torch.enable_grad(), memory.write(shift):
                logits = split.top(state)
                loss = edit_loss(logits, batch)[asked].sum() / prefixes
                after = logits.float().log_softmax(-1)[~label_asked]
                moved = functional.kl_div(after, before[~label_asked], log_target=True, reduction="none").sum()
                decay = (shift.norm(dim=-1, keepdim=True) / size).square().sum()
                optimizer.zero_grad()
                (loss + config.kl * moved + config.decay * decay).backward()
            optimizer.step()
            with torch.no_grad():
                shift *= (config.reach * size / shift.norm(dim=-1, keepdim=True).clamp_min(1e-8)).clamp(max=1.0)
        return shift.detach()


class _Memory:
    """One matrix, read and written at one token of every row.

    Attributes:
        inputs, outputs: (rows, …) at the tokens, after :meth:`read`.
        owner: (rows,) the edit that a row belongs to.
    """

    def __init__(self, module: nn.Module, where: Tensor, owner: Tensor) -> None:
        self.module = module
        self.where = where
        self.owner = owner
        self.inputs = self.outputs = torch.empty(0)

    def read(self) -> Any:
        """Inside the ``with`` keep inputs and outputs."""

        def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            self.inputs, self.outputs = self._at(args[0]).float(), self._at(output).float()

        return held(self.module.register_forward_hook(keep))

    def write(self, shift: Tensor) -> Any:
        """Inside the ``with`` add every edit's shift to the output at its rows' tokens."""

        def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            rows = torch.arange(len(self.where), device=output.device)
            flat = output.view(len(self.where), -1, output.shape[-1])
            moved = flat.index_put((rows, self.where), shift[self.owner].to(output.dtype), accumulate=True)
            return moved.view_as(output)

        return held(self.module.register_forward_hook(add))

    def _at(self, x: Tensor) -> Tensor:
        rows = torch.arange(len(self.where), device=x.device)
        return x.reshape(len(self.where), -1, x.shape[-1])[rows, self.where]


def subject_token(language_model: LanguageModel, prompt: str, request: EditRequest) -> int:
    """Position of the last token of the request's subject in ``prompt``.

    Raises:
        EditorError: the prompt does not contain the subject.
    """
    subject = request.subject
    start = prompt.rfind(subject) if subject else -1
    if not subject or start < 0:
        raise EditorError(f"rome needs the subject inside the prompt; it is {subject!r}, the prompt {request.prompt!r}")
    return len(language_model.text.prompt(prompt[: start + len(subject)]).ids) - 1
