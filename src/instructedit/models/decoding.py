"""How a model chooses the next token when it writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import GenerationConfig

from instructedit.models.language_model import LanguageModel


@contextmanager
def decoding(language_model: LanguageModel, new_tokens: int, *, sample: bool = False) -> Iterator[GenerationConfig]:
    """Replace the model's generation config by a plain one inside the ``with``, and yield it.

    A checkpoint may have a repetition penalty, forbidden words or sampling in its own. Transformers takes what a
    config leaves unset from the model's, so passing a neutral one to ``generate`` is not enough.

    Args:
        language_model: its config is replaced.
        new_tokens: length of a continuation, at most.
        sample: draw every token from the model's own distribution (temperature 1) instead of taking the most likely.
    """
    model = language_model.model
    own = model.generation_config
    drawn = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} if sample else {}
    plain = GenerationConfig(
        do_sample=sample,
        num_beams=1,
        max_new_tokens=new_tokens,
        bos_token_id=getattr(own, "bos_token_id", None),
        eos_token_id=getattr(own, "eos_token_id", None),
        pad_token_id=language_model.text.pad_id,
        **drawn,
    )
    model.generation_config = plain
    try:
        yield plain
    finally:
        model.generation_config = own
