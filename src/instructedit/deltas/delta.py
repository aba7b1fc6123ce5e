"""Weight deltas: what an edit is.

A matrix W of a layer y = x W gets a change D, mostly a low-rank one, D = A B. W + D is never formed while editing: a
forward hook adds x D to the layer's output, so attaching costs nothing, detaching restores the model bit by bit, and
every row of a batch can carry another delta.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from instructedit.deltas.factors import Factor
from instructedit.errors import DeltaError
from instructedit.models.hooks import execution_device, removed_on_exit
from instructedit.models.language_model import LanguageModel, check_language_model
from instructedit.models.near import fits
from instructedit.models.structure import linear_shape
from instructedit.records import EditRequest


class DeltaMetadata(BaseModel):
    """Where a delta came from.

    Attributes:
        base: fingerprint of the base model that it was made for.
        architecture: fingerprint of its architecture and tokenizer; empty in files of earlier versions.
        sketch: a few of its weights, to compare another precision of the model with; likewise.
        source: the name under which that model was loaded; for people, never compared.
        editor: name of the method.
        requests: what the delta brings about, one a merged edit.
        instruction: the text that the editor was given; None where it was given none.
        versions: of instructedit, torch and transformers.
        compression_error: upper bound of the relative Frobenius error of what was compressed, 0 if nothing was: exact
            after one compression, None where nothing can be said, see :meth:`Delta.__add__`.
    """

    model_config = ConfigDict(frozen=True)

    base: str
    architecture: str = ""
    sketch: str = ""
    source: str = ""
    editor: str = ""
    requests: tuple[EditRequest, ...] = ()
    instruction: str | None = None
    versions: dict[str, str] = {}
    compression_error: float | None = 0.0

    @classmethod
    def joined(cls, parts: Sequence[DeltaMetadata], compression_error: float | None) -> DeltaMetadata:
        """Return the metadata of several deltas as one: all requests and editors; the instruction if all share it."""
        first = parts[0]
        return first.model_copy(
            update={
                "compression_error": compression_error,
                "requests": tuple(request for part in parts for request in part.requests),
                "editor": "+".join(dict.fromkeys(part.editor for part in parts)),
                "instruction": first.instruction if len({part.instruction for part in parts}) == 1 else None,
            }
        )


@dataclass(frozen=True)
class Delta:
    """An edit as a change of some matrices; nothing in it is ever changed in place.

    Attributes:
        factors: by module name.
        metadata: the base model's fingerprint and where the delta came from.
    """

    factors: Mapping[str, Factor]
    metadata: DeltaMetadata = field(default_factory=lambda: DeltaMetadata(base=""))

    def __repr__(self) -> str:
        ranks = sorted({factor.rank for factor in self.factors.values()})
        numbers = sum(tensor.numel() for factor in self.factors.values() for tensor in factor.tensors.values())
        of = f"rank {ranks[0]} to {ranks[-1]}" if len(ranks) > 1 else f"rank {ranks[0]}" if ranks else "no rank"
        about = self.metadata
        made = f"{len(about.requests)} edit(s) by {about.editor or '?'} of {about.base or '?'}"
        return f"Delta({made}: {len(self.factors)} modules, {of}, {numbers:,} numbers)"

    def __add__(self, other: Delta) -> Delta:
        """Return both edits as one; low-rank factors are put side by side, so their ranks add up.

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
            factors[name] = factors[name] + added if name in factors else added
        error = _error_of_sum(Delta(factors), self, other)
        return Delta(factors, DeltaMetadata.joined((mine, theirs), error))

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors of all factors, as ``<module>.<field>``."""
        return {f"{name}.{part}": t for name, factor in self.factors.items() for part, t in factor.tensors.items()}

    def norm(self) -> float:
        """Return the Frobenius norm of the whole change, sqrt(sum over matrices of ||D||^2)."""
        return math.sqrt(sum(factor.square().item() for factor in self.factors.values()))

    def scale(self, factor: float) -> Delta:
        """Return the same change, ``factor`` times as strong; -1 takes it back."""
        return replace(self, factors={name: own.scale(factor) for name, own in self.factors.items()})

    def compress(self, rank: int) -> Delta:
        """Return the delta with every matrix at most of this rank; the error is in ``metadata.compression_error``.

        Of what was compressed before, with the error e, the errors add up: e + (1 + e) e' is at least the whole.

        Raises:
            DeltaError: a rank below 1, or numbers that are not finite.
        """
        if rank < 1:
            raise DeltaError(f"a delta cannot be compressed to rank {rank}; give 1 or more")
        self._check_finite()
        parts = {name: factor.compress(rank) for name, factor in self.factors.items()}
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

    def _check_finite(self) -> None:
        """Raise a DeltaError if a number is NaN or infinite."""
        broken = [name for name, factor in self.factors.items() if not factor.finite()]
        if broken:
            raise DeltaError(f"the delta of {broken[0]} contains NaN or infinity; make the edit again")

    def check(self, language_model: LanguageModel) -> None:
        """Check that the delta was made for this base model, or for the same model in another precision, and is intact.

        Raises:
            DeltaError: another base model, a module that is not there, other shapes, numbers that are not finite, or
                the model's weights hold a merged delta.
        """
        if language_model.merged:
            raise DeltaError(language_model.merged_message)
        made = self.metadata
        if not fits(language_model, "this delta", made.base, made.architecture, made.sketch):
            raise DeltaError(
                f"this delta was made for the base model {made.base or '?'} "
                f"({made.source or 'source unknown'}), not for {language_model.fingerprint} "
                f"({language_model.source}). Load that model, or make the edit again for this one."
            )
        modules = dict(language_model.model.named_modules())
        for name, factor in self.factors.items():
            module = modules.get(name)
            shape = linear_shape(module) if module is not None else None
            if shape is None:
                raise DeltaError(f"the delta does not fit the model, which has no linear layer {name}")
            if shape != factor.shape:
                raise DeltaError(
                    f"the delta does not fit the model: {name} has shape {shape}, its delta {factor.shape}"
                )
        self._check_finite()

    @contextmanager
    def attached(self, language_model: LanguageModel) -> Iterator[None]:
        """Edit the whole model inside the ``with``; outside it is bit for bit what it was.

        Several deltas may be attached, one inside another. The model's lock is held meanwhile; other threads wait.

        Raises:
            DeltaError: see :meth:`check`.
        """
        check_language_model(language_model)
        with language_model.lock, ExitStack() as stack:
            self.check(language_model)
            for name, factor in self.factors.items():
                module = language_model.model.get_submodule(name)
                stack.enter_context(
                    removed_on_exit(module.register_forward_hook(factor.hook(execution_device(module))))
                )
            language_model.attached += 1
            try:
                yield
            finally:
                language_model.attached -= 1

    @torch.no_grad()
    def merge_into(self, language_model: LanguageModel) -> None:
        """Write the delta into the weights, in place and for good.

        The model is then no longer the base that deltas and editors are for; :class:`LanguageModel` says how to go on.
        Several edits are merged as one delta, their sum.

        Raises:
            DeltaError: see :meth:`check`; or a delta is attached, or a weight is offloaded. Nothing is written then.
        """
        check_language_model(language_model)
        with language_model.lock:
            self.check(language_model)
            if language_model.attached:
                raise DeltaError("a delta is attached; leave its `with` block before merging one")
            weights: dict[str, Tensor] = {}
            for name in self.factors:
                weight = language_model.model.get_submodule(name).weight
                assert isinstance(weight, Tensor)
                if weight.is_meta:
                    raise DeltaError(f"{name} is offloaded and cannot be changed; load the whole model into memory")
                weights[name] = weight
            language_model.merged = True
            for name, factor in self.factors.items():
                dense, weight = factor.dense().to(weights[name].device), weights[name]
                linear = isinstance(language_model.model.get_submodule(name), nn.Linear)
                weight.copy_((weight.float() + (dense.mT if linear else dense)).to(weight.dtype))


@dataclass(frozen=True)
class DeltaBatch:
    """The deltas of many edits, stacked.

    Attributes:
        factors: by module name, the changes of all edits, stacked; a rank of a low-rank change that an edit does not
            use is zero in both A and B.
        ranks: by module name, (edits,) how many ranks each edit uses, the first ones; a module without an entry is used
            in full by every edit.
    """

    factors: Mapping[str, Factor]
    ranks: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return next(iter(self.factors.values())).edits or 0

    def rewrite_prompt(self, edit: int, prompt: str) -> str:
        """Return the prompt as it is: an edit of the weights does not change prompts."""
        return prompt

    @torch.no_grad()
    def norms(self) -> Tensor:
        """Return each edit's Frobenius norm, (edits,); see :meth:`Delta.norm`."""
        squares = [factor.square().cpu() for factor in self.factors.values()]
        return torch.stack(squares).sum(0).sqrt()

    def detach(self) -> DeltaBatch:
        """Return the same values without their graph."""
        return replace(self, factors={name: factor.map(Tensor.detach) for name, factor in self.factors.items()})

    def leaves(self, dtype: torch.dtype | None = None) -> DeltaBatch:
        """Return the same values in ``dtype`` without their graph; they collect gradients for :meth:`backward`."""

        def leaf(tensor: Tensor) -> Tensor:
            return tensor.detach().to(dtype or tensor.dtype).requires_grad_()

        return replace(self, factors={name: factor.map(leaf) for name, factor in self.factors.items()})

    def backward(self, leaves: DeltaBatch) -> None:
        """Pass the gradients that :meth:`leaves` have collected on to what these factors were made from."""
        pairs = [
            (tensor, leaf.grad.to(tensor.dtype))
            for name, factor in self.factors.items()
            for tensor, leaf in zip(factor.tensors.values(), leaves.factors[name].tensors.values(), strict=True)
            if tensor.requires_grad and leaf.grad is not None
        ]
        torch.autograd.backward([tensor for tensor, _ in pairs], [gradient for _, gradient in pairs])

    def select(self, index: int, metadata: DeltaMetadata) -> Delta:
        """Return one edit's delta, without the ranks that it does not use."""
        factors = {}
        for name, factor in self.factors.items():
            used = int(self.ranks[name][index]) if name in self.ranks else None
            factors[name] = factor.select(index, used).map(lambda tensor: tensor.detach().contiguous())
        return Delta(factors, metadata)

    @contextmanager
    def attached(self, language_model: LanguageModel, rows: Tensor) -> Iterator[None]:
        """Give row ``i`` of every batch inside the ``with`` the delta of edit ``rows[i]``.

        Gradients flow into the factors, so this is also how an editor is trained.
        """
        with language_model.lock, ExitStack() as stack:
            for name, factor in self.factors.items():
                module = language_model.model.get_submodule(name)
                rows = rows.to(factor.device)
                # A short edit beside a long one is not multiplied by the long one's empty ranks.
                used = int(self.ranks[name][rows].max()) if name in self.ranks else None
                hook = factor.select(rows, used).hook(execution_device(module))
                stack.enter_context(removed_on_exit(module.register_forward_hook(hook)))
            yield


def _error_of_sum(total: Delta, *parts: Delta) -> float | None:
    """Return the bound of :meth:`Delta.__add__`."""
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
