"""Check that the Hugging Face hub can be reached, because its client retries for half a minute before it fails."""

from __future__ import annotations

import os
import re
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from instructedit.cli.console import err
from instructedit.models.catalogue import known_models

#: Timeout for a connection to the hub, in seconds.
CONNECT_TIMEOUT = 3.0
_OFFLINE = "HF_HUB_OFFLINE"


def offline_if_unreachable(name: str | None) -> str | None:
    """Set the hub client's offline mode if ``name`` is a hub id and the hub cannot be reached.

    The client's number of retries cannot be configured, but its offline mode can. Nothing is changed if the user has
    set the offline mode or a proxy.

    Returns:
        ``name``, so that the function can be used as an option's callback.
    """
    if name is None or not _is_hub_id(name) or _OFFLINE in os.environ or getproxies():
        return name
    address = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    try:
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((address.hostname or "", port), CONNECT_TIMEOUT).close()
    except OSError:
        err.print(f"{address.hostname} cannot be reached; {name} is looked up in the local cache only")
        os.environ[_OFFLINE] = "1"
        loaded = sys.modules.get("huggingface_hub.constants")
        if loaded is not None:  # the client has already read the environment variable
            vars(loaded)[_OFFLINE] = True
    except ValueError:
        pass  # HF_ENDPOINT is not an address; the client reports it
    return name


def _is_hub_id(name: str) -> bool:
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is not None and not (
        name.startswith("bundled") or name in known_models() or Path(name).exists()
    )
