"""MEND: a hypernetwork turns the raw gradient of one edit into a low-rank weight delta.

Mitchell et al., "Fast Model Editing at Scale" (ICLR 2022), as InstructEdit uses it: for every edited matrix,

    Delta W_l = - alpha_l * sum_t u~_t^T delta~_t,    (u~, delta~) = g(u, delta),

where t runs over the tokens with a gradient. The step size alpha_l = exp(theta_l) is learned per matrix and can
not change its sign. All matrices of one shape share one g.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from instructedit.deltas.delta import DeltaBatch, LowRank
from instructedit.editors.base import Editor, register
from instructedit.editors.hypernetwork import Hypernetwork
from instructedit.editors.signals import Signal, finite, read_signals
from instructedit.errors import EditorError, ModelError
from instructedit.models.language_model import LanguageModel
from instructedit.models.structure import Matrix, linear_shape
from instructedit.models.text import pad
from instructedit.records import EditRequest


class EditorConfig(BaseModel):
    """Shape of a hypernetwork editor. Everything a recipe can say under ``editor:``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["mend", "instructedit"] = "instructedit"
    blocks: int = Field(3, ge=1, description="the MLPs of the last blocks are edited")
    matrices: tuple[str, ...] | None = Field(None, description="edit these modules instead")
    rank: int = Field(256, ge=1, description="of the hypernetwork's layers (the paper: 1920)")
    layers: int = Field(2, ge=1, description="of the hypernetwork")
    last_relu: bool = Field(False, description="ReLU in the last layer too, as in MEND's network")
    step_size: float = Field(1e-3, gt=0, description="alpha at the start")
    edit_loss: Literal["mean", "sum"] = Field(
        "mean",
        description="over a target's tokens, of the loss whose gradient is read; the sum is as strong a token "
        "in a long target as in a short one",
    )
    conditioning: Literal["none", "prefix", "hypernetwork", "both"] = Field(
        "hypernetwork", description="where the instruction enters"
    )
    code: int = Field(96, ge=1, description="width of the instruction's code")
    encoder: Literal["trained", "base", "sentence"] = Field("trained", description="what makes the code")
    sentence_encoder: str | None = Field(None, description="folder or hub id, for encoder: sentence")

    @model_validator(mode="before")
    @classmethod
    def _mend_reads_nothing(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and raw.get("name") == "mend":
            return {"conditioning": "none", **raw}
        return raw

    @model_validator(mode="after")
    def _fits_together(self) -> EditorConfig:
        if self.name == "mend" and self.conditioning != "none":
            raise ValueError("mend takes no instruction: leave conditioning out or choose instructedit")
        if (self.encoder == "sentence") != (self.sentence_encoder is not None):
            raise ValueError("encoder: sentence and sentence_encoder belong together")
        return self

    @property
    def reads_prefix(self) -> bool:
        return self.name == "instructedit" and self.conditioning in ("prefix", "both")

    @property
    def conditions_hypernetwork(self) -> bool:
        return self.name == "instructedit" and self.conditioning in ("hypernetwork", "both")


def chosen_matrices(language_model: LanguageModel, config: EditorConfig) -> tuple[Matrix, ...]:
    """The matrices that a config edits in this model.

    Raises:
        ModelError: a named module is missing or is not linear, or there are fewer blocks than asked for.
    """
    if config.matrices is None:
        return language_model.structure.last_mlps(config.blocks)
    modules = dict(language_model.model.named_modules())
    matrices = []
    for name in config.matrices:
        shape = linear_shape(modules[name]) if name in modules else None
        if shape is None:
            raise ModelError(f"{name} is not a linear layer of this model; `instructedit doctor` lists what there is")
        matrices.append(Matrix(name, *shape))
    return tuple(matrices)


@register("mend")
class Mend(Editor):
    """The hypernetwork editor without instructions.

    Args:
        config: its shape.
        matrices: the edited matrices, from the bottom up.
        cut: index of the block that contains the lowest of them; the trunk is what lies below.
        code: width of an instruction's code; 0 here.
    """

    def __init__(self, config: EditorConfig, matrices: Sequence[Matrix], cut: int, code: int = 0) -> None:
        super().__init__()
        self.config = config
        self.matrices = tuple(matrices)
        self.cut = cut
        self._groups: dict[str, list[Matrix]] = {}
        for matrix in matrices:
            self._groups.setdefault(f"{matrix.inputs}x{matrix.outputs}", []).append(matrix)
        self.hypernetworks = nn.ModuleDict(
            {
                shape: Hypernetwork(
                    group[0].inputs,
                    group[0].outputs,
                    rank=config.rank,
                    layers=config.layers,
                    matrices=len(group),
                    code=code,
                    last_relu=config.last_relu,
                )
                for shape, group in self._groups.items()
            }
        )
        self.theta = nn.Parameter(torch.full((len(self.matrices),), config.step_size).log())
        self.theta_condition = nn.Linear(code, len(self.matrices), bias=False) if code else None
        if self.theta_condition is not None:
            nn.init.zeros_(self.theta_condition.weight)

    @classmethod
    def create(cls, config: EditorConfig, language_model: LanguageModel) -> Mend:
        """An untrained editor for a base model."""
        matrices = chosen_matrices(language_model, config)
        cut = min(language_model.structure.block_of(matrix.name) for matrix in matrices)
        return cls(config, matrices, cut)

    def codes(self, language_model: LanguageModel, instructions: Sequence[str | None]) -> Tensor | None:
        """Codes (edits, width) that condition the hypernetwork; None here."""
        return None

    def prompt(self, request: EditRequest, instruction: str | None) -> str:
        """The text whose gradient is read; the bare prompt here."""
        return request.prompt

    def forward(
        self, language_model: LanguageModel, requests: Sequence[EditRequest], instructions: Sequence[str | None]
    ) -> DeltaBatch:
        """As :meth:`edit`, with gradients of the deltas with respect to the hypernetwork."""
        text = language_model.text
        queries = [
            text.pair(self.prompt(request, instruction), request.target)
            for request, instruction in zip(requests, instructions, strict=True)
        ]
        batch = pad(queries, text.pad_id).to(language_model.device)
        state = language_model.split(self.cut).trunk(batch)
        signals = read_signals(language_model, state, self.cut, self.matrices, average=self.config.edit_loss == "mean")
        return self.deltas(signals, self.codes(language_model, instructions), len(requests))

    @torch.no_grad()
    def edit(
        self, language_model: LanguageModel, requests: Sequence[EditRequest], instructions: Sequence[str | None]
    ) -> DeltaBatch:
        """See :meth:`Editor.edit`."""
        deltas: DeltaBatch = self(language_model, requests, instructions)
        for name, low in deltas.factors.items():
            if not (finite(low.a) and finite(low.b)):
                raise EditorError(f"the delta of {name} is not finite; the editor is damaged or diverged in training")
        return deltas

    def round_in_place(self, dtype: torch.dtype) -> None:
        """For use after training: the hypernetworks compute in ``dtype``, and so the deltas come in it."""
        for network in self.hypernetworks.values():
            assert isinstance(network, Hypernetwork)
            network.round_in_place(dtype)

    def step_sizes(self, codes: Tensor | None) -> Tensor:
        """alpha = exp(theta), (1, matrices); with codes exp(theta + S c), (edits, matrices), S = 0 at the start."""
        if self.theta_condition is None or codes is None:
            return self.theta.exp()[None]
        alpha: Tensor = (self.theta + self.theta_condition(codes)).exp()
        return alpha

    def deltas(self, signals: Mapping[str, Signal], codes: Tensor | None, edits: int) -> DeltaBatch:
        """Signals of ``edits`` edits to their deltas; one call of each hypernetwork for all its matrices."""
        device = self.theta.device
        index = {matrix.name: number for number, matrix in enumerate(self.matrices)}
        step_sizes = self.step_sizes(codes).expand(edits, -1)
        factors: dict[str, LowRank] = {}
        for shape, group in self._groups.items():
            found = [signals[matrix.name] for matrix in group]
            u = torch.cat([signal.u for signal in found]).to(device)
            delta = torch.cat([signal.delta for signal in found]).to(device)
            edit = torch.cat([signal.edit for signal in found]).to(device)
            sizes = [len(signal.edit) for signal in found]
            network = self.hypernetworks[shape]
            assert isinstance(network, Hypernetwork)
            if self.training:
                network.observe(u, delta)
            pseudo_u, pseudo_delta = network(u, delta, sizes, codes, edit)
            for matrix, signal, a, b in zip(
                group, found, pseudo_u.split(sizes), pseudo_delta.split(sizes), strict=True
            ):
                alpha = step_sizes[:, index[matrix.name]][signal.edit.to(device)].to(b.dtype)
                factors[matrix.name] = _stack(a, -alpha[:, None] * b, signal, edits)
        ranks = {name: torch.bincount(signal.edit, minlength=edits).to(device) for name, signal in signals.items()}
        return DeltaBatch({matrix.name: factors[matrix.name] for matrix in self.matrices}, ranks)


def _stack(a: Tensor, b: Tensor, signal: Signal, edits: int) -> LowRank:
    """Tokens of all edits to (edits, inputs, rank) and (edits, rank, outputs), zero where an edit has fewer."""
    slots = signal.slots().to(a.device)
    edit = signal.edit.to(a.device)
    rank = int(slots.max()) + 1
    stacked_a = a.new_zeros(edits, rank, a.shape[1]).index_put((edit, slots), a)
    stacked_b = b.new_zeros(edits, rank, b.shape[1]).index_put((edit, slots), b)
    return LowRank(stacked_a.mT, stacked_b)
