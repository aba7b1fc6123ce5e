"""What a token's input owes to the sentence, and what to the subject: the same prompt with another subject.

At the last token of "The Eiffel Tower is located in", the input u of most matrices is more like that of the same
sentence about the Louvre than like that of a paraphrase about the Eiffel Tower (benchmarks/keys.py). An edit with the
key u therefore reaches other subjects before it reaches paraphrases. With u0, the input at the same token of the same
sentence about somebody else,

    u - kappa u0,    0 <= kappa <= 1,

keeps what is the subject's own: with kappa = 1 other subjects' inputs are orthogonal to it on average. The editor
learns kappa for each matrix, and the instruction moves it: an edit that is to hold for all subjects needs the sentence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from instructedit.models.text import Encoded

#: Stands in the place of every subject.
OTHER_SUBJECT = "Maria Keller"

#: (rows, length, inputs) by matrix: its inputs at an edit's tokens with the other subject; zero where there are none.
OtherInputs = Mapping[str, Tensor]


def with_other_subject(prompt: str, subject: str | None) -> str | None:
    """Return the prompt with :data:`OTHER_SUBJECT` in the subject's place; None where the prompt does not name it."""
    if not subject or subject not in prompt or subject == OTHER_SUBJECT:
        return None
    return prompt.replace(subject, OTHER_SUBJECT)


def matching_tokens(edit: Sequence[int], other: Sequence[int]) -> list[int]:
    """Return for every token of an edit the index of the token in its place in the other text, or -1.

    They are the tokens that both texts begin with and those that both end with.
    """
    shorter = min(len(edit), len(other))
    start = next((i for i in range(shorter) if edit[i] != other[i]), shorter)
    end = next((i for i in range(shorter - start) if edit[-1 - i] != other[-1 - i]), shorter - start)
    moved = len(other) - len(edit)
    return [i if i < start else i + moved if i >= len(edit) - end else -1 for i in range(len(edit))]


def other_inputs(
    inputs: Mapping[str, Tensor], edits: Sequence[Encoded], others: Sequence[Encoded | None]
) -> OtherInputs:
    """Return the inputs of the edited matrices at the tokens of the edits, from the texts with the other subject.

    Args:
        inputs: (rows, length, inputs) by matrix: the inputs in the texts with the other subject; where an edit has no
            such text, those in any other. ``length`` is that of the padded edits.
        edits: prompts and targets of a batch of edits, one for each row.
        others: the same with the other subject; None for an edit that names no subject.
    """
    first = next(iter(inputs.values()))
    index = torch.full(first.shape[:2], -1)
    for row, (edit, other) in enumerate(zip(edits, others, strict=True)):
        if other is not None:
            index[row, : len(edit.ids)] = torch.tensor(matching_tokens(edit.ids, other.ids))
    index = index.to(first.device)
    rows = torch.arange(len(edits), device=first.device)[:, None]
    return {name: states[rows, index.clamp(min=0)] * (index >= 0)[..., None] for name, states in inputs.items()}
