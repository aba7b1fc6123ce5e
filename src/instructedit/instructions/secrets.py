"""Keeping keys and passwords inside the process: what they are is known, and every text that leaves is without them."""

from __future__ import annotations

import base64
import json
import logging
import re
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit, urlunsplit

#: What stands in place of a secret.
MARK = "***"
#: A shorter text is not searched for: it would be found in ordinary words. Addresses lose theirs however short it is.
SHORTEST = 6

#: All that have been kept in this process, with the forms in which they are written.
_forms: set[str] = set()
_USERINFO = re.compile(r"(?<=://)[^/?#\s@\"'<>]*@")


def keep(secret: str) -> None:
    """Know a secret from now on."""
    if len(secret) >= SHORTEST:
        _forms.update({secret, quote(secret, safe=""), json.dumps(secret)[1:-1], repr(secret)[1:-1]})
        _forms.add(base64.b64encode(secret.encode(errors="replace")).decode().rstrip("="))


def redacted(text: str) -> str:
    """The text with :data:`MARK` in place of every known secret, in either case, and addresses without passwords."""
    for form in sorted(_forms, key=len, reverse=True):
        text = re.sub(re.escape(form), MARK, text, flags=re.IGNORECASE)
    return _USERINFO.sub("", text)


def holds_secret(text: str) -> bool:
    """Whether a text has a known secret in it."""
    return any(form.casefold() in text.casefold() for form in _forms)


def cleaned(value: Any) -> Any:
    """A JSON value with every text in it, keys too, :func:`redacted`."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict):
        return {cleaned(key): cleaned(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [cleaned(part) for part in value]
    return value


def address(url: str) -> str:
    """An address as it may be shown: without user, password, query and fragment."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return redacted(url)
    return redacted(urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "")))


def keep_those_of(url: str) -> None:
    """Know an address's password (or its user, where it stands alone) and the values of its query.

    Raises:
        ValueError: it is no address.
    """
    parts = urlsplit(url)
    for _, value in parse_qsl(parts.query):
        keep(value)
    alone = parts.password or parts.username
    if alone:
        keep(alone)
        user, _, password = parts.netloc.rpartition("@")[0].partition(":")
        keep(f"{user}:{password}")


class Redacting(logging.Filter):
    """Takes secrets out of what a library logs."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redacted(record.getMessage()), None
        return True
