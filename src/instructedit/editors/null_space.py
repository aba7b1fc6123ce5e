"""An edit's keys, moved towards the null space of what other subjects put in their place.

An edit adds (x a) b to the output of a matrix for an input x. With K the inputs at the tokens of the same sentence
about other subjects, and U those at the edit's own tokens, the nearest a' to a that gives nothing at K and what a gave
at U is

    a' = a - rho X^T (X X^T + lambda I)^-1 (K a; 0),    X = (K; U),    0 <= rho <= 1,

the ridge solution for targets 0 at K and U a at U. AlphaEdit (Fang et al., ICLR 2025) projects a whole change onto the
null space of much text; here the text is the edit's own sentence, where an edit is least able to tell subjects apart.
The rows of X have length 1, so that lambda means the same for all matrices. The editor learns rho for each matrix, and
the instruction moves it: an edit that is to hold for other subjects too must not be kept from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

#: (edits, keys, inputs) by matrix: its inputs at all tokens of an edit's texts about similar subjects; zero where an
#: edit has fewer.
SimilarInputs = Mapping[str, Tensor]

#: lambda: a tenth of a row's square.
RIDGE = 0.1


def towards_null_space(a: Tensor, own: Tensor, others: Tensor, strength: Tensor) -> Tensor:
    """Return a' for the edits of a batch.

    Args:
        a: (edits, inputs, rank) one key a token of the edit.
        own: (edits, rank, inputs) U, the matrix's inputs at these tokens; zero where an edit has fewer.
        others: (edits, keys, inputs) K; zero where an edit has fewer.
        strength: (edits,) rho.

    Returns:
        a', of the shape and data type of a.
    """
    keys = functional.normalize(others.float(), dim=-1)
    x = torch.cat((keys, functional.normalize(own.float(), dim=-1)), dim=1)
    products = x @ x.mT
    products.diagonal(dim1=1, dim2=2).add_(RIDGE)
    responses = functional.pad(keys @ a.float(), (0, 0, 0, own.shape[1]))
    moved = x.mT @ torch.linalg.solve(products, responses)
    projected: Tensor = a - (strength[:, None, None] * moved).to(a.dtype)
    return projected


def similar_inputs(inputs: Mapping[str, Tensor], mask: Tensor, counts: Sequence[int]) -> SimilarInputs:
    """Return the inputs of the edited matrices at all tokens of the texts about similar subjects, edit by edit.

    Args:
        inputs: (rows, length, inputs) by matrix: the inputs in these texts, the first edit's before the second's.
        mask: (rows, length) True at tokens, False at padding.
        counts: how many texts each edit has; an edit without has zeros.
    """
    tokens = [int(rows.sum()) for rows in mask.sum(1).split(list(counts))]
    return {
        name: pad_sequence(list(states[mask.to(states.device)].split(tokens)), batch_first=True)
        for name, states in inputs.items()
    }
