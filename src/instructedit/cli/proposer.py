"""Options that select the proposer of instruction templates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from instructedit.cli.endpoints import make_endpoint
from instructedit.errors import DataError

if TYPE_CHECKING:
    from instructedit.instructions.proposals import Proposer

ProposerName = Annotated[
    str,
    typer.Option(
        help="Proposer: `offline` (a grammar, no network) or `endpoint` (OpenAI-compatible chat completions)."
    ),
]
LanguageModelName = Annotated[str | None, typer.Option("--proposer-model", help="Name of the model at the endpoint.")]
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
    return EndpointProposer(make_endpoint(model, base_url, key_variable))
