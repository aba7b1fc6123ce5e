"""Messages in a model's chat template, as text that an answer can follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from instructedit.errors import ModelError

#: A message: its ``role`` (``system``, ``user`` or ``assistant``) and its ``content``.
Message = Mapping[str, str]


def render_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    """Return messages in the tokenizer's chat template, up to where the assistant's answer begins.

    Raises:
        ModelError: the tokenizer has no chat template, or the template refuses the messages.
    """
    if not tokenizer.chat_template:
        raise ModelError("the model has no chat template; query it with plain text (protocol plain or generation)")
    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
        )
    except (TemplateError, TypeError, ValueError, LookupError) as error:
        raise ModelError(f"the model's chat template refuses the messages: {error}") from None
    return str(text)


def assistant_header(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what every rendered chat ends with, such as ``<|im_start|>assistant`` and a line break.

    Empty for a tokenizer without a chat template, and for a template that has no such header.
    """
    if not getattr(tokenizer, "chat_template", None):
        return ""
    try:
        chats = [render_chat(tokenizer, [{"role": "user", "content": text}]) for text in ("a", "b?")]
    except ModelError:
        return ""
    first, second = chats
    length = 0
    while length < min(map(len, chats)) and first[-1 - length] == second[-1 - length]:
        length += 1
    return first[len(first) - length :]
