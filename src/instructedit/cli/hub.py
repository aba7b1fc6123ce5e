"""Whether the Hugging Face hub can be reached: its client waits half a minute before it says that it cannot."""

from __future__ import annotations

import os
import re
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from instructedit.cli.console import err

#: Seconds that a connection may take.
PATIENCE = 3.0
_OFFLINE = "HF_HUB_OFFLINE"


def offline_if_unreachable(name: str | None) -> str | None:
    """For a hub id: look into the cache alone if there is no connection. Returns the name, as an option's callback.

    The client's number of retries cannot be set, but its offline mode can. Whoever sets that, or a proxy, has decided.
    """
    if name is None or not _is_hub_id(name) or _OFFLINE in os.environ or getproxies():
        return name
    address = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    try:
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((address.hostname or "", port), PATIENCE).close()
    except OSError:
        err.print(f"{address.hostname} cannot be reached; looking for {name} in the cache alone")
        os.environ[_OFFLINE] = "1"
        loaded = sys.modules.get("huggingface_hub.constants")
        if loaded is not None:  # it has read its environment already
            vars(loaded)[_OFFLINE] = True
    except ValueError:
        pass  # no address: the client says what is wrong with it
    return name


def _is_hub_id(name: str) -> bool:
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is not None and not (
        name.startswith("bundled") or Path(name).exists()
    )
