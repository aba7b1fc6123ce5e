"""Options that name an OpenAI-compatible endpoint."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from instructedit.errors import DataError

if TYPE_CHECKING:
    from instructedit.endpoints.chat import ChatEndpoint

BaseUrl = Annotated[str, typer.Option(help="Base URL of the endpoint.")]
KeyVariable = Annotated[
    str, typer.Option("--key-env", help="Environment variable that contains the endpoint's API key.")
]
OPENAI = "https://api.openai.com/v1"


def make_endpoint(model: str, base_url: str, key_variable: str) -> ChatEndpoint:
    """Return the endpoint that the options name.

    Raises:
        DataError: an option is wrong.
        EditorError: as :class:`ChatEndpoint`.
    """
    from instructedit.endpoints.chat import ChatEndpoint

    if not os.environ.get(key_variable, "").strip():  # the value may be the key itself, so it is not repeated
        raise DataError(
            "--key-env takes the NAME of an environment variable that contains the API key; this one is not set"
        )
    public_address(base_url)
    return ChatEndpoint(model, base_url, key_variable)


def public_address(url: str) -> str:
    """Return the endpoint's URL without its parts that may be secret: user, password and query.

    Raises:
        DataError: it is not a URL.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise DataError("--base-url takes a URL such as https://api.openai.com/v1")
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
