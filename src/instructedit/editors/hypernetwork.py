"""The hypernetwork g: from signals (u, delta) to pseudo-signals (u~, delta~), many tokens at once.

MEND's network as the paper uses it: the concatenated, normalised pair passes through low-rank residual layers

    x <- x + act(scale_l * (V (U x) + bias) + shift_l),

with one scale and shift for each of the matrices l that share the network, and V = 0 at the start, so that the
network starts as the identity. With conditioning the instruction embedding c adds its own scale and shift,
both zero at the start (FiLM):

    x <- x + act((1 + Gamma c) * (scale_l * (V (U x) + bias) + shift_l) + B c).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional


def zero_linear(embedding_dim: int, outputs: int) -> nn.Linear | None:
    """Return a linear map of the instruction embedding that is zero at the start; None without an embedding."""
    if not embedding_dim:
        return None
    linear = nn.Linear(embedding_dim, outputs, bias=False)
    nn.init.zeros_(linear.weight)
    return linear


class RunningNorm(nn.Module):
    """Normalises features by the mean and standard deviation of all tokens seen in training (Welford).

    In evaluation the statistics do not change. Before any training step features pass unchanged.

    Args:
        width: of the features.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.square: Tensor
        self.count: Tensor
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("square", torch.zeros(width))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Add tokens x (tokens, width) to the statistics, those of all processes where several train together."""
        # Moments about the mean so far, which all processes share, can be summed over processes as over tokens.
        shifted = (x - self.mean).double()
        moments = torch.stack(
            (torch.full_like(self.mean, x.shape[0]).double(), shifted.sum(0), shifted.square().sum(0))
        )
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(moments)
        added, shift, square = moments
        count = self.count + added[0]
        # Chan, Golub and LeVeque's pairwise update; the mean of the new tokens is shift / added from the old mean.
        self.square += (square - shift.square() / count).float()
        self.mean += (shift / count).float()
        self.count.copy_(count)

    def forward(self, x: Tensor) -> Tensor:
        """Return x (tokens, width) normalised."""
        if self.count < 2:
            return x
        deviation = (self.square / (self.count - 1).float()).sqrt()
        return (x - self.mean) / (deviation + 1e-7)


class LowRankResidual(nn.Module):
    """One layer: see the module's formula.

    Args:
        width: of the concatenated pair.
        rank: of V U.
        matrices: how many matrices share the layer.
        embedding_dim: width of the instruction embedding; 0 without conditioning.
        relu: whether act is the ReLU or the identity.
    """

    def __init__(self, width: int, rank: int, matrices: int, embedding_dim: int, relu: bool) -> None:
        super().__init__()
        rank = min(rank, width)
        self.down = nn.Parameter(torch.randn(rank, width) / width**0.5)  # U
        self.up = nn.Parameter(torch.zeros(width, rank))  # V
        self.bias = nn.Parameter(torch.zeros(width))
        self.scale = nn.Parameter(torch.ones(matrices, width))
        self.shift = nn.Parameter(torch.zeros(matrices, width))
        self.condition = zero_linear(embedding_dim, 2 * width)
        self.relu = relu

    def forward(self, x: Tensor, sizes: Sequence[int], embeddings: Tensor | None, edit: Tensor) -> Tensor:
        """Return the layer's output, (tokens, width).

        Args:
            x: (tokens, width), the first ``sizes[0]`` tokens of matrix 0 and so on.
            sizes: how many tokens each matrix has.
            embeddings: (edits, embedding_dim), or None.
            edit: (tokens,) index of the edit that a token belongs to.
        """
        z = functional.linear(functional.linear(x, self.down), self.up, self.bias)
        condition = (
            None if self.condition is None or embeddings is None else self.condition(embeddings).chunk(2, dim=-1)
        )
        parts = []
        for part, edits, scale, shift in zip(z.split(sizes), edit.split(sizes), self.scale, self.shift, strict=True):
            if condition is not None:
                # The embedding's scale and shift are merged into the matrix's own: one row an edit, then one a token.
                gamma, beta = condition
                scale, shift = ((1 + gamma) * scale)[edits], ((1 + gamma) * shift + beta)[edits]
            parts.append(torch.addcmul(shift.to(z.dtype), part, scale.to(z.dtype)))
        z = torch.cat(parts)
        # At the start z is exactly zero, where ReLU has no gradient and clamp has: ReLU would never learn.
        return x + (z.clamp(min=0) if self.relu else z)


class Hypernetwork(nn.Module):
    """The network shared by all edited matrices of one shape.

    Args:
        inputs: of the matrices.
        outputs: of the matrices.
        rank: of the low-rank residual layers.
        layers: how many there are.
        matrices: how many matrices share the network.
        embedding_dim: width of the instruction embedding; 0 without conditioning.
        last_relu: whether the last layer has the ReLU of MEND's network; without it the last layer can subtract
            from a factor as well as add to it (see docs/method.md).
    """

    def __init__(
        self, inputs: int, outputs: int, *, rank: int, layers: int, matrices: int, embedding_dim: int, last_relu: bool
    ) -> None:
        super().__init__()
        self.inputs = inputs
        self.norm_u = RunningNorm(inputs)
        self.norm_delta = RunningNorm(outputs)
        self.layers = nn.ModuleList(
            LowRankResidual(inputs + outputs, rank, matrices, embedding_dim, relu=last_relu or index < layers - 1)
            for index in range(layers)
        )

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the products, float32 unless :meth:`round_in_place` was called."""
        return next(layer.down.dtype for layer in self.layers if isinstance(layer, LowRankResidual))

    def round_in_place(self, dtype: torch.dtype) -> None:
        """Round the layers' weights to ``dtype`` after training: half the memory traffic, products twice as fast."""
        for layer in self.layers:
            assert isinstance(layer, LowRankResidual)
            for parameter in (layer.down, layer.up, layer.bias):
                parameter.data = parameter.data.to(dtype)

    def observe(self, u: Tensor, delta: Tensor) -> None:
        """Add signals u (tokens, inputs) and delta (tokens, outputs) to the running statistics."""
        self.norm_u.update(u)
        self.norm_delta.update(delta)

    def forward(
        self,
        u: Tensor,
        delta: Tensor,
        sizes: Sequence[int],
        embeddings: Tensor | None,
        edit: Tensor,
        others: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the pseudo-signals, of the same shapes as the signals.

        Args:
            u: (tokens, inputs), matrix by matrix.
            delta: (tokens, outputs), likewise.
            sizes: how many tokens each matrix has.
            embeddings: (edits, embedding_dim), or None.
            edit: (tokens,) index of the edit that a token belongs to.
            others: u with another subject (tokens, inputs), zero where there is none, and kappa (tokens, 1); see
                :mod:`instructedit.editors.contrast`.
        """
        normalised_u = self.norm_u(u)
        if others is not None:
            other_u, kappa = others
            exists = (other_u != 0).any(-1, keepdim=True)
            normalised_u = normalised_u - kappa * exists * self.norm_u(other_u)
        x = torch.cat((normalised_u, self.norm_delta(delta)), dim=-1).to(self.dtype)
        for layer in self.layers:
            x = layer(x, sizes, embeddings, edit)
        return x[:, : self.inputs], x[:, self.inputs :]
