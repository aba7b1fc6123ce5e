"""Factors: the change of one matrix, kept as a product of two thin matrices or as a whole matrix."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor, nn

from instructedit.models.finite import finite


@dataclass(frozen=True)
class Factor(ABC):
    """The change D, (inputs, outputs), of the matrix W of a layer y = x W.

    Every field of a subclass is a tensor. The changes of many edits may be stacked along a leading dimension of every
    tensor; :meth:`compress`, :meth:`__add__` and :attr:`shape` are those of a single edit.
    """

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """Inputs and outputs of the changed matrix."""

    @property
    @abstractmethod
    def rank(self) -> int:
        """Upper bound of the rank of D."""

    @abstractmethod
    def apply(self, x: Tensor) -> Tensor:
        """Return x D, (..., tokens, outputs), of inputs (..., tokens, inputs)."""

    @abstractmethod
    def dense(self) -> Tensor:
        """Return D, (inputs, outputs), in float32."""

    @abstractmethod
    def square(self) -> Tensor:
        """Return the squared Frobenius norm of D, a scalar; (edits,) where many edits are stacked."""

    @abstractmethod
    def scale(self, factor: float) -> Self:
        """Return the change ``factor`` * D."""

    @abstractmethod
    def compress(self, rank: int) -> tuple[LowRank, float, float]:
        """Return the best approximation of D of this rank (Eckart and Young).

        Returns:
            The approximation D', and the squared Frobenius norms of D - D' and of D.
        """

    @abstractmethod
    def select(self, edits: int | Tensor, rank: int | None = None) -> Self:
        """Return the change of one edit, or of several edits (rows,) in the given order, of a stack.

        Args:
            edits: the index of the edit, or the indices (rows,).
            rank: how many ranks are kept, those in front; None keeps all. Read by :class:`LowRank` alone.
        """

    def __add__(self, other: Factor) -> Factor:
        """Return the sum of two changes of the same matrix; without a cheaper form it is a :class:`Dense` one."""
        return Dense(self.dense() + other.dense())

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors by the names of their fields."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the tensors."""
        return next(iter(self.tensors.values())).dtype

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return next(iter(self.tensors.values())).device

    @property
    def edits(self) -> int | None:
        """How many edits are stacked; None for the change of a single edit."""
        first = next(iter(self.tensors.values()))
        return len(first) if first.ndim == 3 else None

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Return the factor with ``function`` applied to each of its tensors."""
        return replace(self, **{name: function(tensor) for name, tensor in self.tensors.items()})

    def hook(self, device: torch.device) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        """Return a forward hook that adds x D to a layer's output; of a stack each row of the batch gets its own D.

        Args:
            device: where the layer runs; its weights may be offloaded.
        """
        moved = self.map(lambda tensor: tensor.to(device))  # once, and not for every token that is generated
        rows, dtype = self.edits, self.dtype

        def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x = args[0].to(device, dtype)  # the input may come from another device
            if rows is not None and x.ndim == 2:  # some families flatten rows and positions before their MLP
                x = x.view(rows, -1, x.shape[-1])
            return output + moved.apply(x).to(output.device, output.dtype).view_as(output)

        return add

    def finite(self) -> bool:
        """Return whether every number is finite."""
        return all(finite(tensor) for tensor in self.tensors.values())


@dataclass(frozen=True)
class LowRank(Factor):
    """The change D = A B, which is never formed.

    Attributes:
        a: A, (inputs, rank).
        b: B, (rank, outputs).
    """

    a: Tensor
    b: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Inputs and outputs of the changed matrix."""
        return self.a.shape[0], self.b.shape[1]

    @property
    def rank(self) -> int:
        """Columns of A; the rank of A B is at most this."""
        return self.a.shape[-1]

    def apply(self, x: Tensor) -> Tensor:
        """Return (x A) B."""
        return (x @ self.a) @ self.b

    def dense(self) -> Tensor:
        """Return A B, (inputs, outputs), in float32."""
        return self.a.float() @ self.b.float()

    def square(self) -> Tensor:
        """Return ||A B||^2 = trace((A^T A) (B B^T)), without forming A B."""
        a, b = self.a.detach().float(), self.b.detach().float()
        return ((a.mT @ a) * (b @ b.mT).mT).sum((-2, -1)).clamp(min=0)

    def scale(self, factor: float) -> LowRank:
        """Return A (``factor`` * B)."""
        return LowRank(self.a, self.b * factor)

    def __add__(self, other: Factor) -> Factor:
        """Return the sum; that of two low-rank changes has their factors side by side, so ranks add up."""
        if not isinstance(other, LowRank):
            return super().__add__(other)
        return LowRank(torch.cat((self.a, other.a), dim=1), torch.cat((self.b, other.b), dim=0))

    def compress(self, rank: int) -> tuple[LowRank, float, float]:
        """Return the best approximation of this rank, with the squared norms of what is lost and of A B.

        The singular values of A B are those of R_a R_b^T for A = Q_a R_a and B^T = Q_b R_b, so A B is not formed.
        """
        q_a, r_a = torch.linalg.qr(self.a.float())
        q_b, r_b = torch.linalg.qr(self.b.float().mT)
        u, s, v = torch.linalg.svd(r_a @ r_b.mT, full_matrices=False)
        kept = min(rank, len(s))
        root = s[:kept].sqrt()
        a = (q_a @ u[:, :kept]) * root
        b = root[:, None] * (v[:kept] @ q_b.mT)
        return LowRank(a.to(self.dtype), b.to(self.dtype)), *_lost_and_whole(s, kept)

    def select(self, edits: int | Tensor, rank: int | None = None) -> LowRank:
        """Return the factors of one edit or of several, see :meth:`Factor.select`."""
        a, b = self.a[:, :, :rank], self.b[:, :rank]
        if isinstance(edits, int):
            return LowRank(a[edits], b[edits])
        return LowRank(a.index_select(0, edits), b.index_select(0, edits))


@dataclass(frozen=True)
class Dense(Factor):
    """The change D itself, for methods that learn every entry of it.

    Attributes:
        change: D, (inputs, outputs).
    """

    change: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Inputs and outputs of the changed matrix."""
        return self.change.shape[-2], self.change.shape[-1]

    @property
    def rank(self) -> int:
        """The smaller of inputs and outputs; D has no higher rank."""
        return min(self.shape)

    def apply(self, x: Tensor) -> Tensor:
        """Return x D."""
        return x @ self.change

    def dense(self) -> Tensor:
        """Return D in float32."""
        return self.change.float()

    def square(self) -> Tensor:
        """Return the sum of the squared entries."""
        return self.change.detach().float().square().sum((-2, -1))

    def scale(self, factor: float) -> Dense:
        """Return ``factor`` * D."""
        return Dense(self.change * factor)

    def compress(self, rank: int) -> tuple[LowRank, float, float]:
        """Return the truncated singular value decomposition, with the squared norms of what is lost and of D."""
        u, s, v = torch.linalg.svd(self.change.float(), full_matrices=False)
        kept = min(rank, len(s))
        root = s[:kept].sqrt()
        a, b = u[:, :kept] * root, root[:, None] * v[:kept]
        return LowRank(a.to(self.dtype), b.to(self.dtype)), *_lost_and_whole(s, kept)

    def select(self, edits: int | Tensor, rank: int | None = None) -> Dense:
        """Return the change of one edit or of several, see :meth:`Factor.select`."""
        return Dense(self.change[edits] if isinstance(edits, int) else self.change.index_select(0, edits))


def _lost_and_whole(singular: Tensor, kept: int) -> tuple[float, float]:
    """Return the squared norms of what is left out after ``kept`` singular values, and of the whole."""
    return float(singular[kept:].square().sum()), float(singular.square().sum())
