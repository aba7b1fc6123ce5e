"""MEND: a hypernetwork turns the raw gradient of one edit into a low-rank weight delta.

Mitchell et al., "Fast Model Editing at Scale" (ICLR 2022), as InstructEdit uses it: for every edited matrix,

    Delta W_l = - alpha_l * sum_t u~_t^T delta~_t,    (u~, delta~) = g(u, delta),

where t runs over the tokens with a gradient. The step size alpha_l = exp(theta_l) is learned per matrix and can
not change its sign. All matrices of one shape share one g.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from instructedit.deltas.delta import DeltaBatch, LowRank
from instructedit.editors.base import register
from instructedit.editors.gradient import EditorConfig, GradientEditor, stacked
from instructedit.editors.hypernetwork import Hypernetwork
from instructedit.editors.signals import Signal
from instructedit.models.structure import Matrix


@register("mend")
class Mend(GradientEditor):
    """The hypernetwork editor without instructions.

    Args:
        config: its shape.
        matrices: the edited matrices, from the bottom up.
        split_layer: index of the block that contains the lowest of them; the trunk is what lies below.
        code: width of an instruction's code; 0 here.
    """

    def __init__(
        self, config: EditorConfig, matrices: Sequence[Matrix], split_layer: int, embedding_dim: int = 0
    ) -> None:
        super().__init__(config, matrices, split_layer)
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
                    embedding_dim=embedding_dim,
                    last_relu=config.last_relu,
                )
                for shape, group in self._groups.items()
            }
        )
        self.log_lr = nn.Parameter(torch.full((len(self.matrices),), config.step_size).log())
        self.log_lr_condition = nn.Linear(embedding_dim, len(self.matrices), bias=False) if embedding_dim else None
        if self.log_lr_condition is not None:
            nn.init.zeros_(self.log_lr_condition.weight)

    def round_in_place(self, dtype: torch.dtype) -> None:
        """For use after training: the hypernetworks compute in ``dtype``, and so the deltas come in it."""
        for network in self.hypernetworks.values():
            assert isinstance(network, Hypernetwork)
            network.round_in_place(dtype)

    def step_sizes(self, embeddings: Tensor | None) -> Tensor:
        """alpha = exp(log_lr), (1, matrices); with codes exp(log_lr + S c), (edits, matrices), S = 0 at the start."""
        if self.log_lr_condition is None or embeddings is None:
            return self.log_lr.exp()[None]
        alpha: Tensor = (self.log_lr + self.log_lr_condition(embeddings)).exp()
        return alpha

    def deltas(self, signals: Mapping[str, Signal], embeddings: Tensor | None, edits: int) -> DeltaBatch:
        """Signals of ``edits`` edits to their deltas; one call of each hypernetwork for all its matrices."""
        device = self.log_lr.device
        index = {matrix.name: number for number, matrix in enumerate(self.matrices)}
        step_sizes = self.step_sizes(embeddings).expand(edits, -1)
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
            pseudo_u, pseudo_delta = network(u, delta, sizes, embeddings, edit)
            for matrix, signal, a, b in zip(
                group, found, pseudo_u.split(sizes), pseudo_delta.split(sizes), strict=True
            ):
                alpha = step_sizes[:, index[matrix.name]][signal.edit.to(device)].to(b.dtype)
                factors[matrix.name] = stacked(a, -alpha[:, None] * b, signal, edits)
        ranks = {name: torch.bincount(signal.edit, minlength=edits).to(device) for name, signal in signals.items()}
        return DeltaBatch({matrix.name: factors[matrix.name] for matrix in self.matrices}, ranks)
