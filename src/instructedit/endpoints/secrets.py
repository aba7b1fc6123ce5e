"""Removing keys and passwords from every text that leaves the process: traces, template files, logs and messages."""

from __future__ import annotations

import base64
import json
import logging
import re
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit, urlunsplit

#: The text in place of a secret.
MARK = "***"
#: Shorter secrets are not searched for, as they would match ordinary words. Addresses lose theirs whatever its length.
SHORTEST = 6

#: The secrets that this process has registered, in every form in which they may be written.
_forms: set[str] = set()
_USERINFO = re.compile(r"(?<=://)[^/?#\s@\"'<>]*@")


def register(secret: str) -> None:
    """Register a secret, so that it is removed from now on."""
    if len(secret) >= SHORTEST:
        _forms.update({secret, quote(secret, safe=""), json.dumps(secret)[1:-1], repr(secret)[1:-1]})
        _forms.add(base64.b64encode(secret.encode(errors="replace")).decode().rstrip("="))


def redacted(text: str) -> str:
    """Return the text with :data:`MARK` for every known secret, in any case, and addresses without passwords."""
    for form in sorted(_forms, key=len, reverse=True):
        text = re.sub(re.escape(form), MARK, text, flags=re.IGNORECASE)
    return _USERINFO.sub("", text)


def holds_secret(text: str) -> bool:
    """Return whether a text has a known secret in it."""
    return any(form.casefold() in text.casefold() for form in _forms)


def redacted_json(value: Any) -> Any:
    """Return a JSON value with every text in it, keys too, :func:`redacted`."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict):
        return {redacted_json(key): redacted_json(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [redacted_json(part) for part in value]
    return value


def address(url: str) -> str:
    """Return an address without user, password, query and fragment."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return redacted(url)
    return redacted(urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "")))


def register_url(url: str) -> None:
    """Register an address's password (or its user, where it has no password) and the values of its query.

    Raises:
        ValueError: it is not an address.
    """
    parts = urlsplit(url)
    for _, value in parse_qsl(parts.query):
        register(value)
    password_or_user = parts.password or parts.username
    if password_or_user:
        register(password_or_user)
        user, _, password = parts.netloc.rpartition("@")[0].partition(":")
        register(f"{user}:{password}")


class Redacting(logging.Filter):
    """A log filter that removes secrets from what a library logs."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Redact a log record in place, and let it pass."""
        record.msg, record.args = redacted(record.getMessage()), None
        return True
