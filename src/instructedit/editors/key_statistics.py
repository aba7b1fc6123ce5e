"""The uncentred covariance of a matrix's inputs over ordinary text: C = E[k^T k] of ROME and MEMIT.

It is computed from sentences about the facts that ship with the package, once per base model and matrix, and kept in a
cache folder (``INSTRUCTEDIT_CACHE``, default ``~/.cache/instructedit``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from instructedit.editors.ordinary_text import fact_sentences
from instructedit.models.inputs import read_inputs
from instructedit.models.language_model import LanguageModel
from instructedit.models.structure import linear_shape
from instructedit.models.text import pad
from instructedit.storage.cached_tensors import cached_tensor, keep_tensor


def second_moment(language_model: LanguageModel, matrix: str, sentences: int = 3000, seed: int = 0) -> Tensor:
    """Return C of one matrix, see :func:`second_moments`."""
    return second_moments(language_model, [matrix], sentences, seed)[matrix]


def second_moments(
    language_model: LanguageModel, matrices: Sequence[str], sentences: int = 3000, seed: int = 0
) -> dict[str, Tensor]:
    """Return C, (inputs, inputs), by matrix: the mean of k^T k over the tokens of ``sentences`` sentences.

    What no cache file has is computed in one pass. A cache file that cannot be read, or holds something else, is
    written again. Where none can be written, C is computed again the next time.

    Args:
        language_model: the base model.
        matrices: names of the modules.
        sentences: how many are read.
        seed: of their choice.
    """
    files = {name: f"keys/{language_model.fingerprint}-{name}-{sentences}-{seed}.safetensors" for name in matrices}
    moments: dict[str, Tensor] = {}
    for name, file in files.items():
        shape = linear_shape(language_model.model.get_submodule(name))
        moment = None if shape is None else cached_tensor(file, (shape[0], shape[0]))
        if moment is not None:
            moments[name] = moment
    computed = _compute(language_model, [name for name in matrices if name not in moments], sentences, seed)
    for name, moment in computed.items():
        keep_tensor(files[name], moment, "the key statistics")
    moments |= computed
    return {name: moments[name].to(language_model.device) for name in matrices}


def regularised_covariance(language_model: LanguageModel, matrix: str, sentences: int, ridge: float) -> Tensor:
    """Return C with ``ridge`` times the mean of its diagonal added to its diagonal, (inputs, inputs)."""
    moment = second_moment(language_model, matrix, sentences)
    return moment + ridge * moment.diagonal().mean() * torch.eye(len(moment), device=moment.device)


@torch.no_grad()
def _compute(language_model: LanguageModel, matrices: Sequence[str], sentences: int, seed: int) -> dict[str, Tensor]:
    """Return C by matrix, see :func:`second_moments`."""
    if not matrices:
        return {}
    texts = sorted(fact_sentences(sentences, seed), key=len)
    totals: dict[str, Tensor] = {}
    tokens = 0
    for start in range(0, len(texts), 64):
        queries = [language_model.text.encode_prompt(text) for text in texts[start : start + 64]]
        batch = pad(queries, language_model.text.pad_id).to(language_model.device)
        for name, inputs in read_inputs(language_model, batch, matrices).items():
            keys = inputs[batch.mask.to(inputs.device)].float()
            products = keys.T @ keys
            totals[name] = totals[name] + products if name in totals else products
        tokens += int(batch.mask.sum())
    return {name: total / tokens for name, total in totals.items()}
