"""The options that choose a proposer of instruction templates."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from instructedit.errors import DataError

if TYPE_CHECKING:
    from instructedit.instructions.proposals import Proposer

ProposerName = Annotated[
    str, typer.Option(help="offline (a grammar, no network) or endpoint (OpenAI-compatible chat completions).")
]
BaseUrl = Annotated[str, typer.Option(help="Endpoint: its address.")]
LanguageModelName = Annotated[str | None, typer.Option("--proposer-model", help="Endpoint: the model's name there.")]
KeyVariable = Annotated[str, typer.Option("--key-env", help="Endpoint: environment variable that holds the key.")]
OPENAI = "https://api.openai.com/v1"
_EXPLORATION_RATE = 0.4


def make_proposer(
    name: str,
    seed: int,
    base_url: str,
    model: str | None,
    key_variable: str,
    exploration_rate: float = _EXPLORATION_RATE,
) -> Proposer:
    """Return the proposer that the options ask for.

    Raises:
        DataError: an option is missing or wrong.
    """
    from instructedit.instructions.endpoint_proposer import EndpointProposer
    from instructedit.instructions.offline_proposer import OfflineProposer

    if name == "offline":
        return OfflineProposer(seed, exploration_rate)
    if name != "endpoint":
        raise DataError(f"--proposer takes offline or endpoint, not {name!r}")
    if model is None:
        raise DataError("the endpoint proposer needs --proposer-model")
    if not os.environ.get(key_variable, "").strip():  # the value may be the key itself, so it is not repeated
        raise DataError("--key-env takes the NAME of an environment variable that holds the key; this one is not set")
    public_address(base_url)
    return EndpointProposer(model, base_url, key_variable)


def public_address(url: str) -> str:
    """Return the endpoint's address without what may be secret in it: user, password and query.

    Raises:
        DataError: it is not an address.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise DataError("--base-url takes an address such as https://api.openai.com/v1")
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
