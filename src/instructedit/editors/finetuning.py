"""Fine-tuning on the one edit, the plainest baselines: all edits of a batch at once, each on its own copy of a layer.

`ft` is FT+L of Meng et al. (ROME, NeurIPS 2022), after Zhu et al. (2020): Adam on one MLP's last matrix, every
entry of the change held inside a box,

    min over D of -log p(y | x; W + D)   with   |D_ij| <= bound.

`lora` is Hu et al. (ICLR 2022) on the same loss: D = A B of low rank on the MLPs of several blocks, A random and B
zero at the start, no box.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from instructedit.deltas.delta import DeltaBatch, LowRank
from instructedit.editors.base import DirectEditor, register
from instructedit.editors.direct import Descent, descend_each, last_mlp_matrix, requests_state
from instructedit.models.language_model import LanguageModel
from instructedit.models.structure import Matrix
from instructedit.records import EditRequest


class FineTuningConfig(Descent):
    """What both have in common."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FineTuning(DirectEditor):
    """Adam on the change itself.

    Args:
        config: steps and rate.
        matrices: that are changed.
        split_layer: block of the lowest of them.
    """

    def __init__(self, config: FineTuningConfig, matrices: Sequence[Matrix], split_layer: int) -> None:
        super().__init__()
        self.config = config
        self.matrices = tuple(matrices)
        self.split_layer = split_layer

    @abstractmethod
    def start(self, edits: int, device: torch.device) -> dict[str, LowRank]:
        """The change before the first step, zero; what is to be learned requires gradients."""

    def confine(self, factors: Mapping[str, LowRank]) -> None:
        """Bring the change back to where it may be, in place."""

    def edit(
        self, language_model: LanguageModel, requests: Sequence[EditRequest], instructions: Sequence[str | None]
    ) -> DeltaBatch:
        """See :meth:`Editor.edit`. Instructions are not read."""
        split, state = requests_state(language_model, requests, self.split_layer)
        rows = torch.arange(len(requests), device=language_model.device)
        factors = self.start(len(requests), language_model.device)
        learned = [t for low in factors.values() for t in (low.a, low.b) if t.requires_grad]
        ranks = {name: torch.full_like(rows, low.a.shape[-1]) for name, low in factors.items()}
        deltas = DeltaBatch(factors, ranks)
        descend_each(
            learned,
            lambda: deltas.attached(language_model, rows),
            split,
            state,
            self.config,
            lambda: self.confine(factors),
        )
        return DeltaBatch({name: LowRank(low.a.detach(), low.b.detach()) for name, low in factors.items()}, ranks)


class BoxedConfig(FineTuningConfig):
    """FT+L. The defaults are the best of ten trials on the bundled base model; published: a bound of 5e-4."""

    block: int | None = Field(None, ge=0, description="whose MLP's last matrix is changed; None takes the middle one")
    learning_rate: float = Field(3e-2, gt=0)
    bound: float = Field(0.1, gt=0, description="of every entry of the change")


@register("ft")
class BoxedFineTuning(FineTuning):
    """FT+L: one matrix, every entry inside a box."""

    Config = BoxedConfig
    config: BoxedConfig

    @classmethod
    def create(cls, config: BaseModel, language_model: LanguageModel) -> BoxedFineTuning:
        """See :meth:`DirectEditor.create`."""
        assert isinstance(config, BoxedConfig)
        block = len(language_model.structure.blocks) // 2 if config.block is None else config.block
        return cls(config, [last_mlp_matrix(language_model, block)], block)

    def start(self, edits: int, device: torch.device) -> dict[str, LowRank]:
        """D = D I: the whole matrix is learned, the identity beside it only gives it the form of a delta."""
        return {
            m.name: LowRank(
                torch.zeros(edits, m.inputs, m.outputs, device=device, requires_grad=True),
                torch.eye(m.outputs, device=device).expand(edits, -1, -1),
            )
            for m in self.matrices
        }

    def confine(self, factors: Mapping[str, LowRank]) -> None:
        """Clamp every entry."""
        for low in factors.values():
            low.a.clamp_(-self.config.bound, self.config.bound)


class LoraConfig(FineTuningConfig):
    """LoRA on single edits; the defaults are the best of ten trials on the bundled base model."""

    steps: int = Field(50, ge=1, description="of Adam, at most")
    learning_rate: float = Field(3e-3, gt=0)
    blocks: int = Field(3, ge=1, description="the MLPs of the last blocks are changed")
    rank: int = Field(2, ge=1)
    seed: int = 0


@register("lora")
class Lora(FineTuning):
    """Low-rank fine-tuning of the last blocks' MLPs."""

    Config = LoraConfig
    config: LoraConfig

    @classmethod
    def create(cls, config: BaseModel, language_model: LanguageModel) -> Lora:
        """See :meth:`DirectEditor.create`."""
        assert isinstance(config, LoraConfig)
        structure = language_model.structure
        matrices = structure.last_mlps(config.blocks)
        return cls(config, matrices, min(structure.block_of(matrix.name) for matrix in matrices))

    def start(self, edits: int, device: torch.device) -> dict[str, LowRank]:
        """A random, the same for every edit, and B zero."""
        generator = torch.Generator().manual_seed(self.config.seed)

        def random(matrix: Matrix) -> Tensor:
            a: Tensor = torch.randn(matrix.inputs, self.config.rank, generator=generator) / matrix.inputs**0.5
            many: Tensor = a.to(device).expand(edits, -1, -1).clone()
            return many.requires_grad_()

        return {
            m.name: LowRank(
                random(m), torch.zeros(edits, self.config.rank, m.outputs, device=device, requires_grad=True)
            )
            for m in self.matrices
        }
