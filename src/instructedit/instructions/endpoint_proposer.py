"""The proposer that asks a language model behind an OpenAI-compatible chat-completions endpoint."""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from instructedit.errors import DataError, EditorError
from instructedit.instructions import secrets
from instructedit.instructions.candidates import MOST_CHARACTERS
from instructedit.instructions.proposals import Proposal, ProposalContext
from instructedit.storage.reading import parse_json

if TYPE_CHECKING:
    from openai import OpenAI

logger = logging.getLogger(__name__)

_SYSTEM = (
    "You write instructions for a knowledge editor of language models. An instruction is one line of plain English "
    "that says what kind of change an edit is and how far it reaches: what has to change along with it and what has to "
    "stay as it was. It is generic: it never names a particular subject or answer. You are shown earlier instructions "
    "with their scores on validation edits; write better ones. Answer with a JSON object and nothing else: "
    '{"descriptions": ["…", "…"]}'
)
_ATTEMPTS = 5
_USUAL_VARIABLE = "OPENAI_API_KEY"
#: At most this many times the requested number of texts are read from an answer.
_MOST_TEXTS = 4
_LONGEST_REASON = 500
_REDACTING = secrets.Redacting()


class EndpointProposer:
    """Asks a language model behind an OpenAI-compatible endpoint.

    The key, and a password or query in the address, are sent to the endpoint only: they are removed from
    everything that it returns. Redirects are not followed, as they would send the request to another server.

    Args:
        model: the model's name at the endpoint.
        base_url: the endpoint's address; ``https://user:password@host/v1`` is sent as basic authentication.
        key_variable: environment variable that holds the key; the key is never written.
        timeout: seconds that a call may take.
        pause: seconds before the second attempt; doubled before each further one.

    Attributes:
        address: the endpoint's address without secrets.

    Raises:
        EditorError: the variable is not set, the address is not valid, or the ``openai`` package is missing.
    """

    name = "endpoint"

    def __init__(
        self,
        model: str,
        base_url: str,
        key_variable: str = _USUAL_VARIABLE,
        timeout: float = 60.0,
        pause: float = 1.0,
    ) -> None:
        self.model, self.pause = model, pause
        key = _key_in(key_variable)
        try:
            parts = urlsplit(base_url)
            is_valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
            secrets.register_url(base_url)
        except ValueError:
            is_valid = False
        if not is_valid:  # it may hold a password, so the message does not repeat it
            raise EditorError("the endpoint's URL is not of the form https://host/v1; change --base-url")
        self.address = secrets.address(base_url)
        if parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
            logger.warning("the API key is sent to %s unencrypted; use https", self.address)
        for library in ("httpx", "httpx2", "openai._base_client"):
            logging.getLogger(library).addFilter(_REDACTING)
        user = None
        if parts.username is not None:
            user = (unquote(parts.username), unquote(parts.password or ""))
        self._client = self._connect(key, user, dict(parse_qsl(parts.query)), timeout)

    def _connect(self, key: str, user: tuple[str, str] | None, query: Mapping[str, str], timeout: float) -> OpenAI:
        try:
            from openai import DefaultHttpxClient, OpenAI
        except ImportError:
            raise EditorError(
                "the endpoint proposer needs the openai package: pip install 'instructedit[openai]'"
            ) from None
        # The client's own retries are off: each attempt has to be in the trace.
        return OpenAI(
            api_key=key,
            base_url=self.address,
            timeout=timeout,
            max_retries=0,
            default_query=query,
            http_client=DefaultHttpxClient(follow_redirects=False, auth=user, timeout=timeout),
        )

    def propose(self, context: ProposalContext, on_call: Callable[[dict[str, Any]], None]) -> list[Proposal]:
        """Return what the model wrote. A call that fails or returns something else is repeated a few times.

        Raises:
            EditorError: every attempt failed; the message has the last reason.
        """
        from openai import APIStatusError, OpenAIError

        reason = "?"
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            began = time.monotonic()
            status: int | None = 200
            try:
                answer = self._client.chat.completions.create(
                    model=self.model,
                    messages=[
                        {"role": "system", "content": _SYSTEM},
                        {"role": "user", "content": json.dumps(_prompt(context), ensure_ascii=False)},
                    ],
                )
                content = answer.choices[0].message.content if answer.choices else None
                texts = _sanitised(_descriptions(content), context)
                reason = "" if texts else "the response contains no descriptions"
            except OpenAIError as error:
                texts, status = [], error.status_code if isinstance(error, APIStatusError) else None
                reason = _shortened(f"{type(error).__name__}: {error}")
                if status is not None and 300 <= status < 400:
                    reason = f"it redirects (status {status}), which is not followed; give the new URL"
            except (DataError, ValueError, AttributeError, TypeError, RecursionError) as error:
                texts, reason = [], _shortened(f"not the JSON that was requested: {error}")
            seconds = round(time.monotonic() - began, 3)
            on_call(
                {"round": context.round, "attempt": attempt + 1, "status": status, "seconds": seconds, "error": reason}
            )
            if texts:
                return [(text, None) for text in texts]
            if status in (400, 401, 403, 404) or (status is not None and 300 <= status < 400):
                break  # another attempt would not help
        raise EditorError(f"the endpoint returned no templates: {reason}")


def _key_in(variable: str) -> str:
    """Return the key in an environment variable.

    Raises:
        EditorError: there is none. The message repeats the given name only if there is such a variable, as it may be
            the key itself.
    """
    if variable != _USUAL_VARIABLE and variable not in os.environ:
        raise EditorError(
            "the environment variable that --key-env names is not set; --key-env takes the NAME of a variable with "
            "the API key"
        )
    key = os.environ.get(variable, "").strip()
    if not key:
        raise EditorError(f"the environment variable {variable} contains no API key")
    if not (key.isascii() and key.isprintable()):
        raise EditorError(
            f"the environment variable {variable} contains characters that an API key cannot have; copy the key again"
        )
    secrets.register(key)
    return key


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _shortened(reason: str) -> str:
    reason = secrets.redacted(reason)
    return reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]}…"


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
    text = re.sub(r"^```(?:json)?\s*|\s*```$", "", (content or "").strip())
    value = parse_json(text, lone_surrogates=True)  # a text with a lone surrogate is rejected later, as a candidate
    if isinstance(value, dict):
        value = value.get("descriptions")
    if not isinstance(value, list):
        raise ValueError("expected a list under `descriptions`")
    return value
