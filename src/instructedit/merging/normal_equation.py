"""Many edits as one delta, by the normal equation over their keys.

Deltas that are added up disturb one another: each answers a little to the inputs of all others, and with some tens of
them nothing is left of any. Here every edit is first run alone. At an edited matrix and a token of the edit's own
texts, its input is the key x, and what its delta adds to the output is the value v = x D_i. The merged change is

    D = argmin sum w |x D - v|^2 + preserve * n * E|k D|^2 + ridge * n * c |D|^2
      = (sum w x^T x + preserve * n * C + ridge * n * c I)^-1 sum w x^T v,

with the sums over all tokens of all edits, w = ``own_weight`` for an edit's own prompt and 1 for its other texts, n
edits, C = E[k^T k] the second moment of the matrix's inputs k over ordinary text, and c the mean of its diagonal:
MEMIT's equation (Meng et al. 2023, equation 14) with the values of a trained editor. C protects text like that which it
was measured on, the ridge everything else: without it, twelve edits raised SmolLM2's perplexity on other text by 71%.
Matrices are merged one after the other, from the bottom up, and the keys of each are read with the changes below it in
place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from instructedit.deltas.delta import Delta, DeltaMetadata
from instructedit.deltas.factors import Dense
from instructedit.editors.key_statistics import second_moments
from instructedit.errors import DeltaError
from instructedit.merging.stacking import Text, stack, text_batches
from instructedit.models.inputs import read_block_inputs, read_inputs
from instructedit.models.language_model import LanguageModel
from instructedit.models.split import TrunkState
from instructedit.models.text import pad

#: Texts at a time.
BATCH = 64
#: Weights of ordinary text and of the change's size, and sentences of ordinary text for C.
PRESERVE, RIDGE, SENTENCES = 3.0, 10.0, 1000
#: Weight of an edit's own prompt against each of its other texts.
OWN_WEIGHT = 50.0


#: (tokens, outputs) by matrix: what deltas add to its outputs.
_AddedOutputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class _Batch:
    """Texts of several edits on their way through the blocks.

    Attributes:
        deltas: the edits of the texts.
        rows: (rows,) index of the edit of each text.
        weights: (rows,) weight of each text.
        merged: the state with what has been merged so far.
        alone: the state with each text's own edit.
    """

    deltas: tuple[Delta, ...]
    rows: Tensor
    weights: Tensor
    merged: TrunkState
    alone: TrunkState

    def values(
        self, language_model: LanguageModel, block: int, names: Sequence[str]
    ) -> tuple[_AddedOutputs, TrunkState]:
        """Return what the own edits add to the block's matrices at all tokens, and the state after the block."""
        own = stack(self.deltas, names)
        with own.attached(language_model, self.rows):
            inputs, after = read_block_inputs(language_model, self.alone, block, own.factors)
        values = {}
        for name, factor in own.factors.items():
            x = inputs[name].to(factor.device, factor.dtype)
            values[name] = factor.select(self.rows).apply(x)[self.alone.batch.mask].cpu()
        return values, after

    def keys(self, language_model: LanguageModel, block: int, name: str) -> Tensor:
        """Return the inputs (tokens, inputs) of a matrix at all tokens, in the model as it is."""
        inputs, _ = read_block_inputs(language_model, self.merged, block, [name])
        return inputs[name][self.merged.batch.mask].float().cpu()

    def token_weights(self) -> Tensor:
        """Return the weight of each token's text, (tokens, 1)."""
        mask = self.merged.batch.mask.cpu()
        return self.weights[:, None].expand(mask.shape)[mask][:, None]


@torch.no_grad()
def merge(
    deltas: Sequence[Delta],
    texts: Sequence[Sequence[Text]],
    language_model: LanguageModel,
    *,
    preserve: float = PRESERVE,
    ridge: float = RIDGE,
    own_weight: float = OWN_WEIGHT,
    sentences: int = SENTENCES,
    on_matrix: Callable[[str], None] = lambda name: None,
) -> Delta:
    """Return one delta that does what each of the deltas does alone.

    Args:
        deltas: the edits, each made by itself for the base model.
        texts: for each edit the prompts and answers at whose tokens its effect is to be kept: its own and, for
            paraphrases and for what it leaves unchanged, others. Their answers are read, not trained.
        language_model: the base model.
        preserve: weight of ordinary text. More of it keeps more of the model and less of the edits.
        ridge: weight of the change's own size, which keeps what ordinary text has nothing of; positive.
        own_weight: weight of the first text of each edit, its own prompt; that of the others is 1.
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
    block_of = language_model.structure.block_of
    blocks = range(block_of(names[0]), block_of(names[-1]) + 1)
    batches = [
        _Batch(part.deltas, part.rows, part.own_prompt_weights(own_weight), part.state, part.state)
        for part in text_batches(deltas, texts, language_model, blocks[0], BATCH)
    ]
    moments = second_moments(language_model, names, sentences)
    merged = Delta({}, DeltaMetadata.joined([delta.metadata for delta in deltas], None))
    for block in blocks:
        own = [name for name in names if block_of(name) == block]
        values, alone = zip(*(batch.values(language_model, block, own) for batch in batches), strict=True)
        for name in own:
            moment = moments[name].cpu()
            identity = moment.diagonal().mean() * torch.eye(len(moment))
            left = len(deltas) * (preserve * moment + ridge * identity)
            right = torch.zeros(len(left), next(d.factors[name].shape[1] for d in deltas if name in d.factors))
            with merged.attached(language_model):
                for batch, by_name in zip(batches, values, strict=True):
                    roots = batch.token_weights().sqrt()
                    keys = batch.keys(language_model, block, name) * roots
                    left = left + keys.mT @ keys
                    if name in by_name:  # else no edit of this batch changes the matrix
                        right = right + keys.mT @ (by_name[name].float() * roots)
            change = torch.linalg.solve(left.double(), right.double()).float()
            merged = Delta({**merged.factors, name: Dense(change)}, merged.metadata)
            on_matrix(name)
        with merged.attached(language_model):
            together = [language_model.split(block).one_block(batch.merged) for batch in batches]
        batches = [replace(b, merged=m, alone=a) for b, m, a in zip(batches, together, alone, strict=True)]
    return merged


def _in_order_of_use(
    deltas: Sequence[Delta], texts: Sequence[Sequence[Text]], language_model: LanguageModel
) -> list[str]:
    """Return the names of the changed matrices in the order in which a forward pass uses them."""
    changed = {name for delta in deltas for name in delta.factors}
    first = language_model.text.encode_pair(texts[0][0].prompt, texts[0][0].answer)
    batch = pad([first], language_model.text.pad_id).to(language_model.device)
    return list(read_inputs(language_model, batch, changed))
