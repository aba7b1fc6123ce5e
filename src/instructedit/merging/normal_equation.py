"""Many edits as one delta, by the normal equation over their keys.

Deltas that are added up disturb one another: each answers a little to the inputs of all others, and with some tens of
them nothing is left of any. Here every edit is first run alone. At an edited matrix and a token of the edit's own
texts, its input is the key x, and what its delta adds to the output is the value v = x D_i. The merged change is

    D = argmin sum |x D - v|^2 + preserve * n * E|k D|^2 = (sum x^T x + preserve * n * C)^-1 sum x^T v,

with the sums over all tokens of all edits, n edits, and C = E[k^T k] the second moment of the matrix's inputs k over
ordinary text: MEMIT's equation (Meng et al. 2023, equation 14) with the values of a trained editor. Matrices are merged
one after the other, from the bottom up, and the keys of each are read with the changes below it in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from instructedit.deltas.delta import Delta, DeltaBatch, DeltaMetadata
from instructedit.deltas.factors import Dense, Factor, LowRank
from instructedit.editors.base import Editor
from instructedit.editors.editing import make_edits
from instructedit.editors.gradient import GradientEditor
from instructedit.editors.key_statistics import second_moments
from instructedit.errors import DeltaError
from instructedit.merging.texts import Text, texts_of
from instructedit.models.inputs import read_inputs, read_top_inputs
from instructedit.models.language_model import LanguageModel
from instructedit.models.split import TrunkState
from instructedit.models.text import pad
from instructedit.records import EditRequest
from instructedit.tasks.task import Task

#: Texts at a time.
BATCH = 64
#: Weight of the model's other answers, and sentences of ordinary text for C.
PRESERVE, SENTENCES = 3.0, 1000


@dataclass(frozen=True)
class _Batch:
    """Texts of several edits, through the trunk.

    Attributes:
        state: the trunk's state.
        edit: (rows,) index of the edit that a row belongs to.
    """

    state: TrunkState
    edit: Tensor


def make_merged_edit(
    editor: Editor,
    language_model: LanguageModel,
    requests: Sequence[EditRequest],
    tasks: Task | str | Path | Sequence[Task | None] | None,
    *,
    preserve: float = PRESERVE,
    on_matrix: Callable[[str], None] = lambda name: None,
) -> Delta:
    """Return all requests as one edit: each is made by itself, then they are merged.

    Args:
        editor: that makes the edits.
        language_model: its base model.
        requests: what to change.
        tasks: see :func:`make_edits`.
        preserve: see :func:`merge`.
        on_matrix: see :func:`merge`.

    Raises:
        DataError: see :func:`make_edits`.
        EditorError: see :func:`make_edits`.
    """
    deltas = make_edits(editor, language_model, requests, tasks)
    answer = editor.answer if isinstance(editor, GradientEditor) else str
    texts = texts_of(requests, language_model, answer)
    return merge(deltas, texts, language_model, preserve=preserve, on_matrix=on_matrix)


@torch.no_grad()
def merge(
    deltas: Sequence[Delta],
    texts: Sequence[Sequence[Text]],
    language_model: LanguageModel,
    *,
    preserve: float = PRESERVE,
    sentences: int = SENTENCES,
    on_matrix: Callable[[str], None] = lambda name: None,
) -> Delta:
    """Return one delta that does what each of the deltas does alone.

    Args:
        deltas: the edits, each made by itself for the base model.
        texts: for each edit the prompts and answers at whose tokens its effect is to be kept: its own and, for
            paraphrases and for what it leaves unchanged, others. Their answers are read, not trained.
        language_model: the base model.
        preserve: weight of everything else. More of it keeps more of the model and less of the edits.
        sentences: of ordinary text, for C; see :func:`second_moments`.
        on_matrix: called with each matrix's name when it is merged.

    Returns:
        A delta with one dense change a matrix, whose size does not grow with the number of edits.

    Raises:
        DeltaError: no deltas, or they do not belong to the model.
    """
    if not deltas:
        raise DeltaError("there are no edits to merge")
    for delta in deltas:
        delta.check(language_model)
    names = _in_order_of_use(deltas, texts, language_model)
    split_layer = min(language_model.structure.block_of(name) for name in names)
    batches = list(_batches(texts, language_model, split_layer))
    values = [_values(batch, deltas, language_model, split_layer, names) for batch in batches]
    merged = Delta({}, _metadata(deltas))
    moments = second_moments(language_model, names, sentences)
    for name in names:
        moment = moments[name].cpu()
        left = preserve * len(deltas) * moment
        right = torch.zeros(len(moment), next(d.factors[name].shape[1] for d in deltas if name in d.factors))
        for batch, by_name in zip(batches, values, strict=True):
            keys = _keys(batch, merged, language_model, split_layer, name)
            left = left + keys.mT @ keys
            right = right + keys.mT @ by_name[name].float()
        # A little of the diagonal, so that directions that no text has do not make the equation singular.
        left = left + 1e-6 * left.diagonal().mean() * torch.eye(len(left))
        change = torch.linalg.solve(left, right)
        merged = Delta({**merged.factors, name: Dense(change)}, merged.metadata)
        on_matrix(name)
    return merged


def _in_order_of_use(
    deltas: Sequence[Delta], texts: Sequence[Sequence[Text]], language_model: LanguageModel
) -> list[str]:
    """Return the names of the changed matrices in the order in which a forward pass uses them."""
    changed = {name for delta in deltas for name in delta.factors}
    batch = pad([language_model.text.encode_pair(*texts[0][0])], language_model.text.pad_id).to(language_model.device)
    return list(read_inputs(language_model, batch, changed))


def _batches(texts: Sequence[Sequence[Text]], language_model: LanguageModel, split_layer: int) -> Iterator[_Batch]:
    """Yield all texts, those of similar length together."""
    encode = language_model.text.encode_pair
    queries = [(edit, encode(*text)) for edit, own in enumerate(texts) for text in own]
    queries.sort(key=lambda query: len(query[1].ids))
    for start in range(0, len(queries), BATCH):
        part = queries[start : start + BATCH]
        batch = pad([query for _, query in part], language_model.text.pad_id).to(language_model.device)
        yield _Batch(language_model.split(split_layer).trunk(batch), torch.tensor([edit for edit, _ in part]))


def _keys(batch: _Batch, merged: Delta, language_model: LanguageModel, split_layer: int, name: str) -> Tensor:
    """Return the inputs (tokens, inputs) of a matrix with the merged changes below it, in float32."""
    with merged.attached(language_model):
        inputs = read_top_inputs(language_model, batch.state, split_layer, [name])[name]
    return inputs[batch.state.batch.mask].float().cpu()


def _values(
    batch: _Batch, deltas: Sequence[Delta], language_model: LanguageModel, split_layer: int, names: Sequence[str]
) -> dict[str, Tensor]:
    """Return what each row's own edit adds to the outputs of the matrices, (tokens, outputs), by name."""
    edits, rows = batch.edit.unique(return_inverse=True)
    stacked = stack([deltas[edit] for edit in edits.tolist()], names)
    with stacked.attached(language_model, rows):
        inputs = read_top_inputs(language_model, batch.state, split_layer, names)
    mask = batch.state.batch.mask
    return {
        name: factor.select(rows).apply(inputs[name].to(factor.dtype))[mask].to(torch.bfloat16).cpu()
        for name, factor in stacked.factors.items()
    }


def stack(deltas: Sequence[Delta], names: Sequence[str]) -> DeltaBatch:
    """Return deltas as a batch; a delta that does not change a matrix has zeros there."""
    factors: dict[str, Factor] = {}
    for name in names:
        own = [delta.factors.get(name) for delta in deltas]
        low = [factor for factor in own if isinstance(factor, LowRank)]
        present = [factor for factor in own if factor is not None]
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


def _metadata(deltas: Sequence[Delta]) -> DeltaMetadata:
    """Return the metadata of the merged delta: that of the first, with the requests of all."""
    first = deltas[0].metadata
    instructions = {delta.metadata.instruction for delta in deltas}
    return first.model_copy(
        update={
            "requests": tuple(request for delta in deltas for request in delta.metadata.requests),
            "editor": "+".join(dict.fromkeys(delta.metadata.editor for delta in deltas)),
            "instruction": first.instruction if len(instructions) == 1 else None,
            "compression_error": None,
        }
    )
