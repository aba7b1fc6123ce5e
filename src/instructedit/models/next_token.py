"""What a model expects after a prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from instructedit.models.language_model import LanguageModel
from instructedit.models.text import pad

#: Prompts at a time.
BATCH = 64


@torch.no_grad()
def next_token_log_probs(language_model: LanguageModel, prompts: Sequence[str]) -> Tensor:
    """Return the log probabilities of the next token after each prompt, (prompts, vocabulary), on the CPU."""
    rows = []
    for start in range(0, len(prompts), BATCH):
        part = [language_model.text.encode_pair(prompt, ".") for prompt in prompts[start : start + BATCH]]
        padded = pad(part, language_model.text.pad_id).to(language_model.device)
        logits = language_model.split(0).full(padded)
        first = torch.searchsorted(padded.rows, torch.arange(len(part), device=padded.rows.device))
        rows.append(logits[first].float().log_softmax(-1).cpu())
    return torch.cat(rows)
