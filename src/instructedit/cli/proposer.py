"""Options that select the proposer of instruction templates."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from instructedit.errors import DataError

if TYPE_CHECKING:
    from instructedit.instructions.proposals import Proposer

ProposerName = Annotated[
    str,
    typer.Option(
        help="Proposer: `offline` (a grammar, no network) or `endpoint` (OpenAI-compatible chat completions)."
    ),
]
BaseUrl = Annotated[str, typer.Option(help="Base URL of the endpoint.")]
LanguageModelName = Annotated[str | None, typer.Option("--proposer-model", help="Name of the model at the endpoint.")]
KeyVariable = Annotated[
    str, typer.Option("--key-env", help="Environment variable that contains the endpoint's API key.")
]
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
        raise DataError(f"--proposer must be offline or endpoint, not {name!r}")
    if model is None:
        raise DataError("--proposer endpoint also needs --proposer-model")
    if not os.environ.get(key_variable, "").strip():  # the value may be the key itself, so it is not repeated
        raise DataError(
            "--key-env takes the NAME of an environment variable that contains the API key; this one is not set"
        )
    public_address(base_url)
    return EndpointProposer(model, base_url, key_variable)


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
