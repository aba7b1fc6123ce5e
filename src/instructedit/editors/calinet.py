"""CaliNet: a few memory slots beside an MLP, learned for the edit; an edit adds to the MLP's output.

Dong et al., "Calibrating Factual Knowledge in Pretrained Language Models" (Findings of EMNLP 2022): with x the input of
the MLP,

    MLP'(x) = MLP(x) + gelu(x K) V,

K (inputs, slots) and V (slots, outputs) are learned on the edit, all other weights are frozen. V is zero at the start.
Every edit of a batch has its own slots.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from instructedit.editors.base import DirectEditor, Edits
from instructedit.editors.direct import AdamConfig, last_mlp_matrix, minimise_each_loss, trunk_of_requests
from instructedit.models.hooks import removed_on_exit
from instructedit.models.language_model import LanguageModel
from instructedit.models.structure import Matrix
from instructedit.records import EditRequest


class CaliNetConfig(AdamConfig):
    """Hyperparameters of CaliNet; the defaults are the best of ten trials on the bundled base model."""

    block: int | None = Field(None, ge=0, description="whose MLP gets the slots; None takes the one two thirds up")
    slots: int = Field(64, ge=1, description="memory slots of an edit")
    steps: int = Field(50, ge=1, description="steps of Adam, at most")
    learning_rate: float = Field(3e-3, gt=0, description="of Adam")
    seed: int = Field(0, description="of the keys' random start")


@dataclass(frozen=True)
class Slots(Edits):
    """The slots of many edits.

    Attributes:
        first: name of the module in which the MLP begins.
        last: name of the module in which it ends.
        keys: (edits, inputs, slots).
        values: (edits, slots, outputs).
    """

    first: str
    last: str
    keys: Tensor
    values: Tensor

    def __len__(self) -> int:
        return len(self.keys)

    @contextmanager
    def attached(self, language_model: LanguageModel, rows: Tensor) -> Iterator[None]:
        """See :class:`~instructedit.editors.base.Edits`."""
        pending: list[Tensor] = []  # the slots' output, between the beginning and the end of the MLP

        def read(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].reshape(len(rows), -1, args[0].shape[-1]).to(self.keys.dtype)
            edit = rows.to(x.device)
            active = functional.gelu(x @ self.keys.to(x.device)[edit])
            pending.append(active @ self.values.to(x.device)[edit])

        def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return output + pending.pop().to(output.device, output.dtype).view_as(output)

        begin, end = (language_model.model.get_submodule(name) for name in (self.first, self.last))
        with (
            language_model.lock,
            removed_on_exit(begin.register_forward_pre_hook(read)),
            removed_on_exit(end.register_forward_hook(add)),
        ):
            yield


class CaliNet(DirectEditor[CaliNetConfig]):
    """Adds trained memory slots to one MLP; the original weights do not change.

    Args:
        config: its hyperparameters.
        first: the matrix through which the MLP reads.
        last: the matrix through which it writes.
        split_layer: its block.
    """

    name = "calinet"
    paper = "Dong et al. 2022"
    Config = CaliNetConfig

    def __init__(self, config: CaliNetConfig, first: Matrix, last: Matrix, split_layer: int) -> None:
        super().__init__()
        self.config = config
        self.first = first
        self.last = last
        self.split_layer = split_layer

    @classmethod
    def create(cls, config: CaliNetConfig, language_model: LanguageModel) -> Self:
        """See :meth:`DirectEditor.create`."""
        structure = language_model.structure
        block = 2 * len(structure.blocks) // 3 if config.block is None else config.block
        last = last_mlp_matrix(language_model, block)
        return cls(config, structure.mlps[block][0], last, block)

    def edit(
        self, language_model: LanguageModel, requests: Sequence[EditRequest], instructions: Sequence[str | None]
    ) -> Slots:
        """See :meth:`Editor.edit`. Instructions are not read."""
        split, state = trunk_of_requests(language_model, requests, self.split_layer)
        rows = torch.arange(len(requests), device=language_model.device)
        generator = torch.Generator().manual_seed(self.config.seed)  # the same start for every edit
        start: Tensor = torch.randn(self.first.inputs, self.config.slots, generator=generator)
        start = (start / self.first.inputs**0.5).to(language_model.device)
        keys = start.expand(len(requests), -1, -1).clone().requires_grad_()
        values = start.new_zeros(len(requests), self.config.slots, self.last.outputs).requires_grad_()
        slots = Slots(self.first.name, self.last.name, keys, values)
        minimise_each_loss([keys, values], lambda: slots.attached(language_model, rows), split, state, self.config)
        return Slots(self.first.name, self.last.name, keys.detach(), values.detach())
