"""What trained editors have in common: they turn the raw gradient of an edit into a low-rank weight delta."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from instructedit.deltas.delta import DeltaBatch, LowRank
from instructedit.editors.base import Editor
from instructedit.editors.signals import Signal, read_signals
from instructedit.errors import EditorError, ModelError
from instructedit.models.finite import finite
from instructedit.models.language_model import LanguageModel
from instructedit.models.structure import Matrix, linear_shape
from instructedit.models.text import pad, with_period
from instructedit.records import EditRequest


class EditorConfig(BaseModel):
    """Shape of a trained editor. Everything a recipe can say under ``editor:``."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: Literal["ke", "mend", "instructedit"] = "instructedit"
    blocks: int = Field(3, ge=1, le=10_000, description="the MLPs of the last blocks are edited")
    matrices: tuple[str, ...] | None = Field(None, description="edit these modules instead")
    rank: int = Field(256, ge=1, le=65_536, description="of the hypernetwork's layers (the paper: 1920)")
    layers: int = Field(2, ge=1, le=100, description="of the hypernetwork")
    last_relu: bool = Field(False, description="ReLU in the last layer too, as in MEND's network")
    step_size: float = Field(1e-3, gt=0, le=1e6, description="alpha at the start")
    edit_loss: Literal["mean", "sum"] = Field(
        "mean",
        description="over a target's tokens, of the loss whose gradient is read; the sum is as strong a token "
        "in a long target as in a short one",
    )
    append_period: bool = Field(
        False, description="edits and training go on to a full stop after the answer, so that it ends there"
    )
    conditioning: Literal["none", "prefix", "hypernetwork", "both"] = Field(
        "hypernetwork", description="where the instruction enters"
    )
    embedding_dim: int = Field(96, ge=1, le=65_536, description="width of the instruction's code")
    encoder: Literal["trained", "base", "sentence"] = Field("trained", description="what makes the code")
    sentence_encoder: str | None = Field(None, description="folder or hub id, for encoder: sentence")

    @model_validator(mode="before")
    @classmethod
    def _reads_nothing(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and raw.get("name") in ("ke", "mend"):
            return {"conditioning": "none", **raw}
        return raw

    @model_validator(mode="after")
    def _fits_together(self) -> EditorConfig:
        if self.name != "instructedit" and self.conditioning != "none":
            raise ValueError(f"{self.name} takes no instruction: leave conditioning out or choose instructedit")
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


class GradientEditor(Editor):
    """An editor that is trained to make a better change of the gradient of a request's loss.

    Args:
        config: its shape.
        matrices: the edited matrices, from the bottom up.
        split_layer: index of the block that contains the lowest of them; the trunk is what lies below.

    Attributes:
        log_lr: (matrices,) logarithms of the step sizes.
        usual_norms: 1st and 99th percentile of the norms of its edits of held-out requests in training; None where
            they are not known.
    """

    usual_norms: tuple[float, float] | None = None

    log_lr: nn.Parameter

    def __init__(self, config: EditorConfig, matrices: Sequence[Matrix], split_layer: int) -> None:
        super().__init__()
        self.config = config
        self.matrices = tuple(matrices)
        self.split_layer = split_layer

    @classmethod
    def create(cls, config: EditorConfig, language_model: LanguageModel) -> Self:
        """An untrained editor for a base model."""
        matrices = chosen_matrices(language_model, config)
        split_layer = min(language_model.structure.block_of(matrix.name) for matrix in matrices)
        return cls(config, matrices, split_layer)

    @abstractmethod
    def deltas(self, signals: Mapping[str, Signal], embeddings: Tensor | None, edits: int) -> DeltaBatch:
        """Signals of ``edits`` edits to their deltas."""

    def round_in_place(self, dtype: torch.dtype) -> None:
        """For use after training: give up float32 where products are large."""

    def embeddings(
        self, language_model: LanguageModel, requests: Sequence[EditRequest], instructions: Sequence[str | None]
    ) -> Tensor | None:
        """Codes (edits, width) that condition the editor; None here."""
        return None

    def prompt(self, request: EditRequest, instruction: str | None) -> str:
        """The text whose gradient is read; the bare prompt here."""
        return request.prompt

    def answer(self, target: str) -> str:
        """The text that is to follow the prompt."""
        return with_period(target) if self.config.append_period else target

    def forward(
        self, language_model: LanguageModel, requests: Sequence[EditRequest], instructions: Sequence[str | None]
    ) -> DeltaBatch:
        """As :meth:`edit`, with gradients of the deltas with respect to the hypernetwork."""
        text = language_model.text
        queries = [
            text.encode_pair(self.prompt(request, instruction), self.answer(request.target))
            for request, instruction in zip(requests, instructions, strict=True)
        ]
        batch = pad(queries, text.pad_id).to(language_model.device)
        state = language_model.split(self.split_layer).trunk(batch)
        signals = read_signals(
            language_model, state, self.split_layer, self.matrices, average=self.config.edit_loss == "mean"
        )
        return self.deltas(signals, self.embeddings(language_model, requests, instructions), len(requests))

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


def stacked(a: Tensor, b: Tensor, signal: Signal, edits: int) -> LowRank:
    """Tokens of all edits to (edits, inputs, rank) and (edits, rank, outputs), zero where an edit has fewer."""
    slots = signal.slots().to(a.device)
    edit = signal.edit.to(a.device)
    rank = int(slots.max()) + 1
    stacked_a = a.new_zeros(edits, rank, a.shape[1]).index_put((edit, slots), a)
    stacked_b = b.new_zeros(edits, rank, b.shape[1]).index_put((edit, slots), b)
    return LowRank(stacked_a.mT, stacked_b)
