"""Editing directions: where an editor's pseudo-gradients point, and whether that depends on task or instruction.

The paper's Figure 2a shows the pseudo-gradients u~ of several tasks in two dimensions and reads off that instructions
separate them. This module measures the same directions, of u~ and of delta~, for every edited matrix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import subspace_angles
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import silhouette_samples
from sklearn.model_selection import cross_val_predict
from torch import Tensor

from instructedit.deltas.delta import DeltaBatch
from instructedit.deltas.factors import Factor, LowRank
from instructedit.editors.base import Editor
from instructedit.errors import EditorError
from instructedit.evaluation.intervals import Estimate, estimate
from instructedit.models.language_model import LanguageModel
from instructedit.records import EditRequest

Array = NDArray[np.float64]
SIDES = ("u", "delta")
#: Dimensions of the subspace that represents a task, and of the reduced directions that the linear probe is fitted to.
SUBSPACE_DIMENSIONS, PROBE_DIMENSIONS = 4, 20
#: Folds of the probe's cross-validation.
FOLDS = 5


@torch.no_grad()
def directions(
    editor: Editor,
    language_model: LanguageModel,
    requests: Sequence[EditRequest],
    instructions: Sequence[str | None],
    batch: int = 32,
) -> dict[str, dict[str, Array]]:
    """Return unit vectors (edits, width) by edited matrix and side.

    A delta is Delta W = sum_t u~_t delta~_t^T. Its direction on one side is the sum over tokens of that side's vectors,
    each weighted by the length of its partner, so that tokens count as much as they change the matrix.

    Raises:
        EditorError: the editor's edits are not weight deltas.
    """
    vectors: dict[str, dict[str, list[Array]]] = {}
    for start in range(0, len(requests), batch):
        deltas = editor.edit(language_model, requests[start : start + batch], instructions[start : start + batch])
        if not isinstance(deltas, DeltaBatch):
            raise EditorError(f"{editor.name} does not change weights, so it has no gradient directions")
        for name, factor in deltas.factors.items():
            for side, sums in _weighted_sums(factor).items():
                unit = torch.nn.functional.normalize(sums, dim=-1).cpu().double().numpy()
                vectors.setdefault(name, {}).setdefault(side, []).append(unit)
    return {name: {side: np.concatenate(parts) for side, parts in sides.items()} for name, sides in vectors.items()}


def _weighted_sums(factor: Factor) -> dict[str, Tensor]:
    """Return by side the sum (edits, width) of the tokens' vectors, each weighted by the norm of its partner.

    A dense change is the sum of its columns, each times the unit vector of its output.
    """
    if isinstance(factor, LowRank):
        a, b = factor.a.float().mT, factor.b.float()  # (edits, rank, width); rows beyond an edit's rank are zero
        return {"u": (a * b.norm(dim=-1, keepdim=True)).sum(1), "delta": (b * a.norm(dim=-1, keepdim=True)).sum(1)}
    change = factor.tensors["change"].float()
    return {"u": change.sum(-1), "delta": change.norm(dim=-2)}


@dataclass(frozen=True)
class Separability:
    """How far apart the directions of several tasks are.

    Attributes:
        silhouette: mean over edits, cosine distance; 1 is separate, 0 mixed.
        probe: accuracy of a linear probe of the task, on edits that it was not fitted to.
        angle: mean principal angle between two tasks' subspaces, in degrees; the mean over pairs of tasks.
    """

    silhouette: Estimate
    probe: Estimate
    angle: float

    def as_dict(self) -> dict[str, Any]:
        """Return the values for JSON."""
        return {"silhouette": self.silhouette.as_dict(), "probe": self.probe.as_dict(), "angle": round(self.angle, 2)}


def separability(vectors: Array, tasks: Sequence[str], seed: int = 0) -> Separability:
    """Return the separability of unit vectors (edits, width) by task; intervals are bootstraps over edits."""
    labels = np.asarray(tasks)
    silhouettes = silhouette_samples(vectors, labels, metric="cosine")
    reduced = PCA(min(PROBE_DIMENSIONS, *vectors.shape), random_state=seed).fit_transform(vectors)
    reduced = reduced / (reduced.std() or 1.0)
    predicted = cross_val_predict(LogisticRegression(max_iter=1000), reduced, labels, cv=FOLDS)
    names = sorted(set(tasks))
    bases = {name: _basis(vectors[labels == name]) for name in names}
    angles = [
        np.degrees(subspace_angles(bases[first], bases[second])).mean()
        for index, first in enumerate(names)
        for second in names[index + 1 :]
    ]
    return Separability(
        estimate(silhouettes.tolist(), seed),
        estimate((predicted == labels).astype(float).tolist(), seed),
        float(np.mean(angles)),
    )


def _basis(vectors: Array) -> Array:
    """Return an orthonormal basis (width, k) of the subspace of a task's vectors, which are not centred."""
    basis: Array = np.linalg.svd(vectors, full_matrices=False)[2][: min(SUBSPACE_DIMENSIONS, len(vectors))].T
    return basis


def explained(by_instruction: Mapping[str, Array]) -> dict[str, float]:
    """Return shares of the directions' variance: the same edits under every instruction, as a two-way layout.

    Args:
        by_instruction: unit vectors (edits, width) of the same edits under each instruction.

    Returns:
        ``instruction`` and ``edit``, the main effects, and ``both``, their interaction. They add up to 1.
    """
    cube = np.stack(list(by_instruction.values()))  # (instructions, edits, width)
    centre = cube.mean((0, 1))
    total = ((cube - centre) ** 2).sum()
    if total == 0:
        return {"instruction": 0.0, "edit": 0.0, "both": 0.0}
    instruction = cube.shape[1] * ((cube.mean(1) - centre) ** 2).sum() / total
    edit = cube.shape[0] * ((cube.mean(0) - centre) ** 2).sum() / total
    return {"instruction": float(instruction), "edit": float(edit), "both": float(1 - instruction - edit)}
