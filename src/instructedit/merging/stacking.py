"""Deltas of one edit each as a batch of edits."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from instructedit.deltas.delta import Delta, DeltaBatch
from instructedit.deltas.factors import Dense, Factor, LowRank


def stack(deltas: Sequence[Delta], names: Sequence[str]) -> DeltaBatch:
    """Return deltas as a batch, of the matrices that any of them changes; the others have zeros there."""
    factors: dict[str, Factor] = {}
    for name in names:
        own = [delta.factors.get(name) for delta in deltas]
        low = [factor for factor in own if isinstance(factor, LowRank)]
        present = [factor for factor in own if factor is not None]
        if not present:
            continue
        inputs, outputs = present[0].shape
        if len(low) < len(present):
            zero = torch.zeros(inputs, outputs, dtype=present[0].dtype)
            factors[name] = Dense(torch.stack([zero if f is None else f.dense().to(zero.dtype) for f in own]))
            continue
        rank = max(factor.rank for factor in low)
        a, b = low[0].a.new_zeros(len(deltas), inputs, rank), low[0].b.new_zeros(len(deltas), rank, outputs)
        for index, factor in enumerate(own):
            if isinstance(factor, LowRank):
                a[index, :, : factor.rank], b[index, : factor.rank] = factor.a, factor.b
        factors[name] = LowRank(a, b)
    return DeltaBatch(factors)
