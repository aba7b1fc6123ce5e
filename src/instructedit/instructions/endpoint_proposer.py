"""The proposer that asks a language model behind an OpenAI-compatible chat-completions endpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from instructedit.endpoints import secrets
from instructedit.endpoints.chat import ChatEndpoint, json_in
from instructedit.errors import EditorError
from instructedit.instructions.candidates import MOST_CHARACTERS
from instructedit.instructions.proposals import Proposal, ProposalContext

_SYSTEM = (
    "You write instructions for a knowledge editor of language models. An instruction is one line of plain English "
    "that says what kind of change an edit is and how far it reaches: what has to change along with it and what has to "
    "stay as it was. It is generic: it never names a particular subject or answer. You are shown earlier instructions "
    "with their scores on validation edits; write better ones. Answer with a JSON object and nothing else: "
    '{"descriptions": ["…", "…"]}'
)
#: At most this many times the requested number of texts are read from an answer.
_MOST_TEXTS = 4


class EndpointProposer:
    """Asks a language model for templates.

    The endpoint's secrets are removed from everything that it returns.

    Args:
        endpoint: the language model.
    """

    name = "endpoint"

    def __init__(self, endpoint: ChatEndpoint) -> None:
        self.endpoint = endpoint

    def propose(self, context: ProposalContext, on_call: Callable[[dict[str, Any]], None]) -> list[Proposal]:
        """Return what the model wrote. A call that fails or returns something else is repeated a few times.

        Raises:
            EditorError: every attempt failed; the message has the last reason.
        """
        question = json.dumps(_prompt(context), ensure_ascii=False)
        try:
            texts = self.endpoint.complete(
                _SYSTEM,
                question,
                lambda content: _sanitised(_descriptions(content), context),
                lambda call: on_call({"round": context.round, **call}),
            )
        except EditorError as error:
            raise EditorError(f"the endpoint returned no templates: {error}") from None
        return [(text, None) for text in texts]


def _sanitised(values: Sequence[Any], context: ProposalContext) -> list[Any]:
    """Return the texts of an answer without secrets; their number and length are limited."""
    texts: list[Any] = []
    for value in values[: _MOST_TEXTS * context.count]:
        if isinstance(value, str):
            text = secrets.redacted(value)
            texts.append(text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}…")
        else:
            shown = secrets.redacted_json(value)
            texts.append(shown if len(json.dumps(shown)) <= MOST_CHARACTERS else None)
    return texts


def _prompt(context: ProposalContext) -> dict[str, Any]:
    """Return the user message: the task, a few edits, and the six best and three worst templates so far."""
    shown = [*context.ranked[:6], *context.ranked[6:][-3:]]
    return {
        "task": context.task.summary,
        "must_contain": list(context.task.instructions.placeholders),
        "examples": [{"prompt": r.request.prompt, "new_answer": r.request.target} for r in context.examples],
        "tried": [
            {"description": r.text, "score": round(r.score, 4), **{k: round(v, 4) for k, v in r.metrics.items()}}
            for r in shown
        ],
        "wanted": context.count,
    }


def _descriptions(content: str | None) -> list[Any]:
    """Return the list in an answer, in a code fence or not.

    Raises:
        DataError: the answer is not JSON.
        ValueError: it has no such list.
    """
    value = json_in(content, lone_surrogates=True)  # a text with a lone surrogate is rejected later, as a candidate
    if isinstance(value, dict):
        value = value.get("descriptions")
    if not isinstance(value, list) or not value:
        raise ValueError("expected a list of texts under `descriptions`")
    return value
