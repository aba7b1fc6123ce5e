"""Low-rank weight deltas: what an edit is.

A matrix W of a layer y = x W gets the delta A B with A (inputs, rank) and B (rank, outputs). W + A B is never
formed while editing: a forward hook adds (x A) B to the layer's output, so attaching costs nothing, detaching
restores the model bit by bit, and every row of a batch can carry another delta.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from instructedit.errors import DeltaError
from instructedit.models.finite import finite
from instructedit.models.hooks import execution_device, removed_on_exit
from instructedit.models.language_model import LanguageModel
from instructedit.models.structure import linear_shape
from instructedit.records import EditRequest


class DeltaMetadata(BaseModel):
    """Where a delta came from.

    Attributes:
        base: fingerprint of the base model that it was made for.
        source: how that model was called when it was loaded; for people, never compared.
        editor: name of the method.
        requests: what the delta brings about, one a merged edit.
        instruction: the text that the editor was given; None where it was given none.
        versions: of instructedit, torch and transformers.
        compression_error: upper bound of the relative Frobenius error of what was compressed, 0 if nothing was: exact
            after one compression, None where nothing can be said, see :meth:`Delta.__add__`.
    """

    model_config = ConfigDict(frozen=True)

    base: str
    source: str = ""
    editor: str = ""
    requests: tuple[EditRequest, ...] = ()
    instruction: str | None = None
    versions: dict[str, str] = {}
    compression_error: float | None = 0.0


@dataclass(frozen=True)
class LowRank:
    """One matrix's delta A B; ``a`` (inputs, rank) and ``b`` (rank, outputs)."""

    a: Tensor
    b: Tensor

    @property
    def rank(self) -> int:
        return self.a.shape[1]

    def dense(self) -> Tensor:
        """A B, (inputs, outputs), in float32."""
        return self.a.float() @ self.b.float()

    def square(self) -> Tensor:
        """||A B||^2 = trace((A^T A) (B B^T)), without forming A B; (edits,) where many edits are stacked."""
        a, b = self.a.detach().float(), self.b.detach().float()
        return ((a.mT @ a) * (b @ b.mT).mT).sum((-2, -1)).clamp(min=0)

    def finite(self) -> bool:
        """Whether all numbers are."""
        return finite(self.a) and finite(self.b)

    def compress(self, rank: int) -> tuple[LowRank, float, float]:
        """The best approximation of this rank, with the squared Frobenius norms of what is lost and of A B.

        The singular values of A B are those of R_a R_b^T for A = Q_a R_a and B^T = Q_b R_b, so the full matrix
        is never formed.
        """
        q_a, r_a = torch.linalg.qr(self.a.float())
        q_b, r_b = torch.linalg.qr(self.b.float().mT)
        u, s, v = torch.linalg.svd(r_a @ r_b.mT, full_matrices=False)
        kept = min(rank, len(s))
        root = s[:kept].sqrt()
        a = (q_a @ u[:, :kept]) * root
        b = root[:, None] * (v[:kept] @ q_b.mT)
        return (
            LowRank(a.to(self.a.dtype), b.to(self.b.dtype)),
            float(s[kept:].square().sum()),
            float(s.square().sum()),
        )


@dataclass(frozen=True)
class Delta:
    """An edit as a low-rank change of some matrices; nothing in it is ever changed in place.

    Attributes:
        factors: by module name.
        metadata: the base model's fingerprint and where the delta came from.
    """

    factors: Mapping[str, LowRank]
    metadata: DeltaMetadata = field(default_factory=lambda: DeltaMetadata(base=""))

    def __repr__(self) -> str:
        ranks = sorted({low.rank for low in self.factors.values()})
        numbers = sum(low.a.numel() + low.b.numel() for low in self.factors.values())
        of = f"rank {ranks[0]} to {ranks[-1]}" if len(ranks) > 1 else f"rank {ranks[0]}" if ranks else "no rank"
        about = self.metadata
        made = f"{len(about.requests)} edit(s) by {about.editor or '?'} of {about.base or '?'}"
        return f"Delta({made}: {len(self.factors)} modules, {of}, {numbers:,} numbers)"

    def __add__(self, other: Delta) -> Delta:
        """Both edits at once: the factors side by side, ranks add up.

        Where parts were compressed, D_i to D_i' with |D_i - D_i'| <= e_i |D_i|, the sum's error is bounded by the
        triangle inequality: |D_i| <= |D_i'| / (1 - e_i), so at most l = sum of e_i |D_i'| / (1 - e_i) is lost, of a sum
        S with |S| >= |S'| - l, and e = l / (|S'| - l). Where the parts cancel, no bound is left: None.

        Raises:
            DeltaError: the two were made for different base models.
        """
        mine, theirs = self.metadata, other.metadata
        if mine.base != theirs.base:
            raise DeltaError(
                f"cannot add deltas for different base models ({mine.base or '?'} and {theirs.base or '?'})"
            )
        factors = dict(self.factors)
        for name, added in other.factors.items():
            if name in factors:
                a = torch.cat((factors[name].a, added.a), dim=1)
                factors[name] = LowRank(a, torch.cat((factors[name].b, added.b), dim=0))
            else:
                factors[name] = added
        total = Delta(factors)
        return Delta(
            factors,
            mine.model_copy(
                update={
                    "compression_error": _error_of_sum(total, self, other),
                    "requests": mine.requests + theirs.requests,
                    "editor": mine.editor if mine.editor == theirs.editor else f"{mine.editor}+{theirs.editor}",
                    "instruction": mine.instruction if mine.instruction == theirs.instruction else None,
                }
            ),
        )

    def norm(self) -> float:
        """The Frobenius norm of the whole change, sqrt(sum over matrices of ||A B||^2), without forming A B."""
        return math.sqrt(sum(low.square().item() for low in self.factors.values()))

    def scale(self, factor: float) -> Delta:
        """The same change, ``factor`` times as strong; -1 takes it back."""
        return replace(self, factors={name: LowRank(low.a, low.b * factor) for name, low in self.factors.items()})

    def compress(self, rank: int) -> Delta:
        """Every matrix to at most this rank; the relative error is stated in ``metadata.compression_error``.

        Of what was compressed before, with the error e, the errors add up: e + (1 + e) e' is at least the whole.

        Raises:
            DeltaError: a rank below 1, or numbers that are not finite.
        """
        if rank < 1:
            raise DeltaError(f"a delta cannot be compressed to rank {rank}; give 1 or more")
        self._refuse_what_is_not_finite()
        parts = {name: low.compress(rank) for name, low in self.factors.items()}
        lost = sum(part[1] for part in parts.values())
        whole = sum(part[2] for part in parts.values())
        error = (lost / whole) ** 0.5 if whole else 0.0
        before = self.metadata.compression_error
        return Delta(
            {name: part[0] for name, part in parts.items()},
            self.metadata.model_copy(
                update={"compression_error": None if before is None else before + (1 + before) * error}
            ),
        )

    def _refuse_what_is_not_finite(self) -> None:
        broken = [name for name, low in self.factors.items() if not low.finite()]
        if broken:
            raise DeltaError(f"the delta of {broken[0]} holds NaN or infinity; make the edit anew")

    def check(self, language_model: LanguageModel) -> None:
        """Refuse a base model that the delta was not made for, and a delta that is damaged.

        Raises:
            DeltaError: another fingerprint, a module that is not there, other shapes, numbers that are not finite, or
                the model's weights hold a merged delta.
        """
        if language_model.merged:
            raise DeltaError(language_model.merged_message)
        if self.metadata.base != language_model.fingerprint:
            raise DeltaError(
                f"this delta was made for the base model {self.metadata.base or '?'} "
                f"({self.metadata.source or 'source unknown'}), not for {language_model.fingerprint} "
                f"({language_model.source}). Load the model that it was made for, or make the edit anew."
            )
        modules = dict(language_model.model.named_modules())
        for name, low in self.factors.items():
            module = modules.get(name)
            shape = linear_shape(module) if module is not None else None
            if shape != (low.a.shape[0], low.b.shape[1]):
                raise DeltaError(f"the delta has no place at {name}: it expects {tuple(low.a.shape)}, found {shape}")
        self._refuse_what_is_not_finite()

    @contextmanager
    def attached(self, language_model: LanguageModel) -> Iterator[None]:
        """The whole model edited inside the ``with``; outside it is bit for bit what it was.

        Several deltas may be attached, one inside another. The model's lock is held meanwhile; other threads wait.

        Raises:
            DeltaError: see :meth:`check`.
        """
        with language_model.lock, ExitStack() as stack:
            self.check(language_model)
            for name, low in self.factors.items():
                module = language_model.model.get_submodule(name)
                stack.enter_context(
                    removed_on_exit(module.register_forward_hook(_adding(low.a, low.b, execution_device(module))))
                )
            language_model.attached += 1
            try:
                yield
            finally:
                language_model.attached -= 1

    @torch.no_grad()
    def merge_into(self, language_model: LanguageModel) -> None:
        """Write the delta into the weights, in place and for good.

        The model is then no longer the base that deltas and editors are for; see :class:`LanguageModel` for the way on.
        Several edits are merged as one delta, their sum.

        Raises:
            DeltaError: see :meth:`check`; or a delta is attached, or a weight is offloaded. Nothing is written then.
        """
        with language_model.lock:
            self.check(language_model)
            if language_model.attached:
                raise DeltaError("a delta is attached; leave the `with` before one is merged")
            weights: dict[str, Tensor] = {}
            for name in self.factors:
                weight = language_model.model.get_submodule(name).weight
                assert isinstance(weight, Tensor)
                if weight.is_meta:
                    raise DeltaError(
                        f"{name} is offloaded, so nothing can be written into it; load the model in memory"
                    )
                weights[name] = weight
            language_model.merged = True
            for name, low in self.factors.items():
                dense, weight = low.dense().to(weights[name].device), weights[name]
                linear = isinstance(language_model.model.get_submodule(name), nn.Linear)
                weight.copy_((weight.float() + (dense.mT if linear else dense)).to(weight.dtype))


@dataclass(frozen=True)
class DeltaBatch:
    """The deltas of many edits, stacked.

    Attributes:
        factors: by module name, A (edits, inputs, rank) and B (edits, rank, outputs); a rank that an edit does
            not use is zero in both.
        ranks: by module name, (edits,) how many ranks each edit uses; the used ones come first.
    """

    factors: Mapping[str, LowRank]
    ranks: Mapping[str, Tensor]

    def __len__(self) -> int:
        return next(iter(self.factors.values())).a.shape[0]

    def rewrite_prompt(self, edit: int, prompt: str) -> str:
        """The prompt: an edit of the weights leaves questions alone."""
        return prompt

    @torch.no_grad()
    def norms(self) -> Tensor:
        """(edits,) each edit's Frobenius norm; see :meth:`Delta.norm`."""
        squares = [low.square().cpu() for low in self.factors.values()]
        return torch.stack(squares).sum(0).sqrt()

    def leaves(self) -> DeltaBatch:
        """The same values cut off from their graph; they collect gradients for :meth:`backward`."""
        return DeltaBatch(
            {
                name: LowRank(low.a.detach().requires_grad_(), low.b.detach().requires_grad_())
                for name, low in self.factors.items()
            },
            self.ranks,
        )

    def backward(self, leaves: DeltaBatch) -> None:
        """Pass the gradients that :meth:`leaves` have collected on to what these factors were made from."""
        pairs = [
            (mine, leaf.grad)
            for name, low in self.factors.items()
            for mine, leaf in ((low.a, leaves.factors[name].a), (low.b, leaves.factors[name].b))
            if mine.requires_grad and leaf.grad is not None
        ]
        torch.autograd.backward([tensor for tensor, _ in pairs], [gradient for _, gradient in pairs])

    def select(self, index: int, metadata: DeltaMetadata) -> Delta:
        """One edit's delta by itself, without the unused ranks."""
        factors = {}
        for name, low in self.factors.items():
            used = int(self.ranks[name][index])
            a, b = low.a[index, :, :used], low.b[index, :used]
            factors[name] = LowRank(a.detach().contiguous(), b.detach().contiguous())
        return Delta(factors, metadata)

    @contextmanager
    def attached(self, language_model: LanguageModel, rows: Tensor) -> Iterator[None]:
        """Row ``i`` of every batch inside the ``with`` carries the delta of edit ``rows[i]``.

        Gradients flow into the factors, so this is also how an editor is trained.
        """
        with language_model.lock, ExitStack() as stack:
            for name, low in self.factors.items():
                module = language_model.model.get_submodule(name)
                rows = rows.to(low.a.device)
                # A short edit beside a long one is not multiplied by the long one's empty ranks.
                used = int(self.ranks[name][rows].max())
                a = low.a[:, :, :used].index_select(0, rows)
                b = low.b[:, :used].index_select(0, rows)
                stack.enter_context(
                    removed_on_exit(module.register_forward_hook(_adding(a, b, execution_device(module))))
                )
            yield


def _error_of_sum(total: Delta, *parts: Delta) -> float | None:
    """See :meth:`Delta.__add__`."""
    errors = [part.metadata.compression_error for part in parts]
    if all(error == 0 for error in errors):
        return 0.0
    lost = 0.0
    for part, error in zip(parts, errors, strict=True):
        if error is None or error >= 1:
            return None
        lost += part.norm() * error / (1 - error)
    left = total.norm() - lost
    return lost / left if left > 0 else None


def _adding(a: Tensor, b: Tensor, device: torch.device) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """A forward hook that adds (x A) B; with a leading row dimension each row has its own A and B.

    Args:
        device: where the layer runs; its weights may be offloaded.
    """
    here_a, here_b = a.to(device), b.to(device)  # once, and not for every token that is generated

    def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = args[0].to(device, a.dtype)  # the input may come from another device
        if a.ndim == 3 and x.ndim == 2:  # some families flatten rows and positions before their MLP
            x = x.view(a.shape[0], -1, x.shape[-1])
        return output + ((x @ here_a) @ here_b).to(output.device, output.dtype).view_as(output)

    return add
