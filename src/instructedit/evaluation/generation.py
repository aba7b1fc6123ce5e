"""Free generation: greedy continuations, and their comparison with expected answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from instructedit.deltas.delta import Delta
from instructedit.editors.base import Edits
from instructedit.errors import DataError
from instructedit.models.decoding import decoding
from instructedit.models.language_model import LanguageModel
from instructedit.models.text import pad


@torch.no_grad()
def generate(
    language_model: LanguageModel,
    prompts: Sequence[str],
    *,
    edits: Edits | None = None,
    rows: Sequence[int] = (),
    delta: Delta | None = None,
    chat: bool = False,
    new_tokens: int = 24,
    batch_size: int = 64,
) -> list[str]:
    """Continue prompts by greedy decoding, up to the end token or ``new_tokens``.

    Args:
        language_model: the base model.
        prompts: in any order.
        edits: prompt ``i`` is continued by the model with edit ``rows[i]`` attached.
        rows: one per prompt, with ``edits``.
        delta: attached for all prompts, in place of ``edits``; with neither, the unedited model continues them.
        chat: put every prompt into the model's chat template.
        new_tokens: length of a continuation, at most.
        batch_size: prompts at a time, sorted by length.

    Returns:
        The continuations without their prompts, in the order of the prompts.

    Raises:
        DataError: a prompt is blank or fills the model's whole length.
    """
    if edits is not None:
        prompts = [edits.rewrite_prompt(row, prompt) for row, prompt in zip(rows, prompts, strict=True)]
    if chat:
        prompts = [language_model.chat_prompt(prompt) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    texts: dict[int, str] = {}
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        queries = [language_model.text.encode_prompt(prompts[index]) for index in chosen]
        # Left padding, so that every row's next token is the last of the batch.
        longest = max(len(query.ids) for query in queries)
        remaining = language_model.text.max_length - longest
        if remaining < 1:
            raise DataError(f"a prompt of {longest} tokens fills the model's context; shorten it", field="prompt")
        batch = pad(queries, language_model.text.pad_id, side="left").to(language_model.device)
        attached: AbstractContextManager[None] = nullcontext()
        if edits is not None:
            edit_rows = torch.tensor([rows[index] for index in chosen], device=language_model.device)
            attached = edits.attached(language_model, edit_rows)
        elif delta is not None:
            attached = delta.attached(language_model)
        with language_model.lock, attached, decoding(language_model, min(new_tokens, remaining)) as greedy:
            out = language_model.model.generate(
                input_ids=batch.ids, attention_mask=batch.mask.long(), generation_config=greedy
            )
        for index, ids in zip(chosen, out[:, batch.ids.shape[1] :], strict=True):
            texts[index] = str(language_model.tokenizer.decode(ids, skip_special_tokens=True))
    return [texts[index] for index in range(len(prompts))]


#: What may stand before an answer, in lower case: punctuation and an article.
_LEADING = re.compile(r"^[^\w]*(?:(?:the|a|an)\s+)?[^\w]*")


def natural_stop(text: str) -> str:
    """Return the text up to a line break or the end of its first sentence."""
    line = text.strip().split("\n")[0]
    return re.split(r"(?<=[.!?])\s+(?=[A-Z])", line)[0].strip()


def normalised(text: str) -> str:
    """Return the text without differences of case, white space and closing punctuation, for comparisons."""
    return re.sub(r"\s+", " ", text).strip().rstrip(".!?,;").strip().casefold()


def matches(continuation: str, answers: Sequence[str]) -> bool:
    """Return whether a continuation is exactly one of an answer's aliases.

    A full stop inside an alias (``A.C. Cesena``) does not end the sentence: the stop is searched after it.
    """
    text = continuation.strip()
    for answer in (alias.strip().rstrip(".!?") for alias in answers):
        starts_with_it = text.casefold().startswith(answer.casefold())
        rest = natural_stop("|" + text[len(answer) :]).removeprefix("|")
        sentence = answer + rest if starts_with_it else natural_stop(text)
        if normalised(sentence) == normalised(answer):
            return True
    return False


def begins_with(continuation: str, answers: Sequence[str]) -> bool:
    """Return whether a continuation begins with one of an answer's aliases, as whole words.

    A leading article, quotation mark or other punctuation is skipped: ``the "guitar", since 1960`` begins with
    ``guitar``.
    """
    text = _LEADING.sub("", normalised(continuation))
    for answer in (_LEADING.sub("", normalised(alias)) for alias in answers):
        if answer and text.startswith(answer) and not text[len(answer) : len(answer) + 1].isalnum():
            return True
    return False
