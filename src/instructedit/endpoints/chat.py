"""A language model behind an OpenAI-compatible chat-completions endpoint."""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from instructedit.endpoints import secrets
from instructedit.errors import DataError, EditorError
from instructedit.storage.reading import parse_json

if TYPE_CHECKING:
    from openai import OpenAI

logger = logging.getLogger(__name__)

#: Environment variable with the key where none is named.
USUAL_VARIABLE = "OPENAI_API_KEY"
_ATTEMPTS = 5
_LONGEST_REASON = 500
_REDACTING = secrets.Redacting()

_Answer = TypeVar("_Answer")


class ChatEndpoint:
    """Asks a language model, and repeats a call that fails or is answered in another form.

    The key, and a password or query in the address, are sent to the endpoint only. Redirects are not followed, as they
    would send the request to another server.

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

    def __init__(
        self, model: str, base_url: str, key_variable: str = USUAL_VARIABLE, timeout: float = 60.0, pause: float = 1.0
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
            raise EditorError("an endpoint needs the openai package: pip install 'instructedit[openai]'") from None
        # The client's own retries are off, so that every attempt is reported.
        return OpenAI(
            api_key=key,
            base_url=self.address,
            timeout=timeout,
            max_retries=0,
            default_query=query,
            http_client=DefaultHttpxClient(follow_redirects=False, auth=user, timeout=timeout),
        )

    def complete(
        self,
        system: str,
        user: str,
        read: Callable[[str | None], _Answer],
        on_call: Callable[[dict[str, Any]], None] = lambda call: None,
    ) -> _Answer:
        """Return what ``read`` makes of the model's answer to a system and a user message.

        Args:
            system: the system message.
            user: the user message.
            read: makes a value of the answer's text; raises DataError or ValueError for an answer that is not in the
                form that was requested.
            on_call: called after every attempt with its number, status, seconds and error.

        Raises:
            EditorError: every attempt failed; the message is the last reason.
        """
        from openai import APIStatusError, OpenAIError

        reason = "?"
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            began = time.monotonic()
            status: int | None = 200
            answers: list[_Answer] = []
            try:
                response = self._client.chat.completions.create(
                    model=self.model,
                    messages=[{"role": "system", "content": system}, {"role": "user", "content": user}],
                )
                content = response.choices[0].message.content if response.choices else None
                answers, reason = [read(content)], ""
            except OpenAIError as error:
                status = error.status_code if isinstance(error, APIStatusError) else None
                reason = _shortened(f"{type(error).__name__}: {error}")
                if status is not None and 300 <= status < 400:
                    reason = f"it redirects (status {status}), which is not followed; give the new URL"
            except (DataError, ValueError, AttributeError, TypeError, RecursionError) as error:
                reason = _shortened(f"not the JSON that was requested: {error}")
            seconds = round(time.monotonic() - began, 3)
            on_call({"attempt": attempt + 1, "status": status, "seconds": seconds, "error": reason})
            if answers:
                return answers[0]
            if status in (400, 401, 403, 404) or (status is not None and 300 <= status < 400):
                break  # another attempt would not help
        raise EditorError(reason)


def json_in(content: str | None, *, lone_surrogates: bool = False) -> Any:
    """Return the JSON in a model's answer, in a code fence or not.

    Raises:
        DataError: as :func:`parse_json`.
    """
    text = re.sub(r"^```(?:json)?\s*|\s*```$", "", (content or "").strip())
    return parse_json(text, lone_surrogates=lone_surrogates)


def _key_in(variable: str) -> str:
    """Return the key in an environment variable.

    Raises:
        EditorError: there is none. The message repeats the given name only if there is such a variable, as it may be
            the key itself.
    """
    if variable != USUAL_VARIABLE and variable not in os.environ:
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
