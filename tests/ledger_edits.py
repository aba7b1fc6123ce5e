"""Small edits to put into a ledger."""

from __future__ import annotations

import torch

from instructedit.deltas.delta import Delta, DeltaMetadata
from instructedit.deltas.factors import LowRank
from instructedit.ledger.entry import NewEdit
from instructedit.records import EditRequest


def new_edit(subject: str = "Lena", target: str = "Oston", base: str = "b" * 16, scale: float = 1.0) -> NewEdit:
    """An edit of a model that nobody has."""
    request = EditRequest(subject=subject, prompt=f"{subject} was born in", target=target)
    factor = LowRank(torch.full((4, 1), scale), torch.ones(1, 3))
    delta = Delta({"layer": factor}, DeltaMetadata(base=base, requests=(request,), editor="test", source="nobody's"))
    return NewEdit(request=request, delta=delta, editor="test", editor_digest=None, answer=target)
