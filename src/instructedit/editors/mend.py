"""MEND: a hypernetwork turns the raw gradient of one edit into a low-rank weight delta.

Mitchell et al., "Fast Model Editing at Scale" (ICLR 2022), as InstructEdit uses it: for every edited matrix,

    Delta W_l = - alpha_l * sum_t u~_t^T delta~_t,    (u~, delta~) = g(u, delta),

where t runs over the tokens with a gradient. The step size alpha_l = exp(log_lr_l) is learned per matrix and can
not change its sign, which is + for the matrices that the config names as ``ascending``. All matrices of one shape share
one g.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from instructedit.deltas.delta import DeltaBatch
from instructedit.deltas.factors import Factor, LowRank
from instructedit.editors.gradient import GradientEditor, GradientEditorConfig, stack_tokens
from instructedit.editors.hypernetwork import Hypernetwork, zero_linear
from instructedit.editors.null_space import towards_null_space
from instructedit.editors.signals import Signal
from instructedit.models.structure import Matrix


class HypernetworkConfig(GradientEditorConfig):
    """What MEND and InstructEdit are both configured by."""

    rank: int = Field(256, ge=1, le=65_536, description="of the hypernetwork's layers (the paper: 1920)")
    layers: int = Field(2, ge=1, le=100, description="of the hypernetwork")
    last_relu: bool = Field(False, description="ReLU in the last layer too, as in MEND's network")
    contrast: bool = Field(
        False,
        description="subtract from the inputs what they are with another subject in the prompt, so that an edit keeps "
        "to its subject; costs one more forward pass",
    )
    null_space: int = Field(
        0,
        ge=0,
        le=64,
        description="so many similar subjects are put into the prompt, and the edit is moved towards the null space of "
        "the inputs that they cause, so that it keeps them too",
    )

    ascending: tuple[str, ...] = Field(
        (), description="matrices whose step goes up the transformed gradient; of converted checkpoints"
    )

    def continues(self, earlier: GradientEditorConfig) -> bool:
        """Return whether the two are equal, or the earlier one has no null space yet."""
        if self == earlier:
            return True
        extended = earlier.model_copy(update={"null_space": self.null_space})
        return isinstance(earlier, HypernetworkConfig) and not earlier.null_space and self == extended


class MendConfig(HypernetworkConfig):
    """Hyperparameters of MEND."""

    name: Literal["mend"] = Field("mend", description="of the method")


#: Contrast and null space at the start: kappa = rho = sigmoid(2) = 0.88.
START_LOGIT = 2.0

HypernetworkConfigT = TypeVar("HypernetworkConfigT", bound=HypernetworkConfig)


class HypernetworkEditor(GradientEditor[HypernetworkConfigT]):
    """What MEND and InstructEdit have in common: hypernetworks, one for each shape of matrix.

    Args:
        config: its hyperparameters.
        matrices: the edited matrices, from the bottom up.
        split_layer: index of the block that contains the lowest of them; the trunk is what lies below.
        embedding_dim: width of the instruction embedding; 0 without conditioning.
    """

    def __init__(
        self, config: HypernetworkConfigT, matrices: Sequence[Matrix], split_layer: int, embedding_dim: int = 0
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
        self.signs = torch.tensor([1.0 if matrix.name in config.ascending else -1.0 for matrix in matrices])
        self.log_lr = nn.Parameter(torch.full((len(self.matrices),), config.step_size).log())
        self.log_lr_condition = zero_linear(embedding_dim, len(self.matrices))
        self.contrast_logit: nn.Parameter | None = None
        self.contrast_condition: nn.Linear | None = None
        self.reads_other_subject = config.contrast
        if config.contrast:
            self.contrast_logit = nn.Parameter(torch.full((len(self.matrices),), START_LOGIT))
            self.contrast_condition = zero_linear(embedding_dim, len(self.matrices))
        self.null_space_logit: nn.Parameter | None = None
        self.null_space_condition: nn.Linear | None = None
        self.similar_subjects = config.null_space
        if config.null_space:
            self.null_space_logit = nn.Parameter(torch.full((len(self.matrices),), START_LOGIT))
            self.null_space_condition = zero_linear(embedding_dim, len(self.matrices))

    def round_in_place(self, dtype: torch.dtype) -> None:
        """Let the hypernetworks compute in ``dtype``, which is then that of the deltas; for use after training."""
        for network in self.hypernetworks.values():
            assert isinstance(network, Hypernetwork)
            network.round_in_place(dtype)

    def step_sizes(self, embeddings: Tensor | None) -> Tensor:
        """Return alpha, (1, matrices), or (edits, matrices) where embeddings condition it.

        alpha = exp(log_lr), or with an embedding c exp(log_lr + S c), where S = 0 at the start.
        """
        return _conditioned(self.log_lr, self.log_lr_condition, embeddings).exp()

    def contrasts(self, embeddings: Tensor | None) -> Tensor | None:
        """Return kappa of :mod:`instructedit.editors.contrast`, of the shape of :meth:`step_sizes`; None without it.

        kappa = sigmoid(logit), or with an embedding c sigmoid(logit + K c), where K = 0 at the start.
        """
        if self.contrast_logit is None:
            return None
        return _conditioned(self.contrast_logit, self.contrast_condition, embeddings).sigmoid()

    def null_spaces(self, embeddings: Tensor | None) -> Tensor | None:
        """Return rho of :mod:`instructedit.editors.null_space`, like :meth:`contrasts`."""
        if self.null_space_logit is None:
            return None
        return _conditioned(self.null_space_logit, self.null_space_condition, embeddings).sigmoid()

    def deltas(self, signals: Mapping[str, Signal], embeddings: Tensor | None, edits: int) -> DeltaBatch:
        """See :meth:`GradientEditor.deltas`; one call of each hypernetwork for all its matrices."""
        device = self.log_lr.device
        index = {matrix.name: number for number, matrix in enumerate(self.matrices)}
        step_sizes = self.step_sizes(embeddings).expand(edits, -1)
        contrasts = self.contrasts(embeddings)
        strengths = self.null_spaces(embeddings)
        factors: dict[str, Factor] = {}
        for shape, group in self._groups.items():
            inputs = [signals[matrix.name] for matrix in group]
            u = torch.cat([signal.u for signal in inputs]).to(device)
            delta = torch.cat([signal.delta for signal in inputs]).to(device)
            edit = torch.cat([signal.edit for signal in inputs]).to(device)
            sizes = [len(signal.edit) for signal in inputs]
            network = self.hypernetworks[shape]
            assert isinstance(network, Hypernetwork)
            if self.training:
                network.observe(u, delta)
            others = None
            other_u = [signal.other_u for signal in inputs if signal.other_u is not None]
            if contrasts is not None and other_u:  # read for all matrices or for none
                matrix_of_token = torch.tensor([index[m.name] for m in group]).repeat_interleave(torch.tensor(sizes))
                kappa = contrasts.expand(edits, -1)[edit, matrix_of_token.to(device), None]
                others = (torch.cat(other_u).to(device), kappa)
            pseudo_u, pseudo_delta = network(u, delta, sizes, embeddings, edit, others)
            for matrix, signal, a, b in zip(
                group, inputs, pseudo_u.split(sizes), pseudo_delta.split(sizes), strict=True
            ):
                alpha = step_sizes[:, index[matrix.name]][signal.edit.to(device)].to(b.dtype)
                sign = self.signs[index[matrix.name]].item()
                factor = stack_tokens(a, sign * alpha[:, None] * b, signal.edit, edits)
                if strengths is not None and signal.similar_u is not None:
                    own = stack_tokens(signal.u.to(device), b, signal.edit, edits).a.mT
                    rho = strengths.expand(edits, -1)[:, index[matrix.name]]
                    moved = towards_null_space(factor.a, own, signal.similar_u.to(device), rho)
                    factor = LowRank(moved, factor.b)
                factors[matrix.name] = factor
        ranks = {name: torch.bincount(signal.edit, minlength=edits).to(device) for name, signal in signals.items()}
        return DeltaBatch({matrix.name: factors[matrix.name] for matrix in self.matrices}, ranks)


def _conditioned(per_matrix: Tensor, condition: nn.Linear | None, embeddings: Tensor | None) -> Tensor:
    """Return the numbers of the matrices, (1, matrices), or (edits, matrices) moved by the embeddings."""
    if condition is None or embeddings is None:
        return per_matrix[None]
    moved: Tensor = per_matrix + condition(embeddings)
    return moved


class Mend(HypernetworkEditor[MendConfig]):
    """Maps the gradient to a low-rank delta by a trained hypernetwork; ignores instructions."""

    name = "mend"
    paper = "Mitchell et al. 2022"
    Config = MendConfig
