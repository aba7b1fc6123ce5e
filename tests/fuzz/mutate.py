"""Ways to spoil bytes, JSON values, and the headers of safetensors files."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from typing import Any

#: Texts that break parsers, file names, terminals and markup.
TEXTS = (
    "",
    " ",
    "\n",
    "a\nb",
    "a\x00b",
    "\x1b[31mred\x1b[0m\x1b]0;title\x07",
    "[/b]",
    "[red]x[/blue]",
    "[link=x]",
    "\u202eevil\u202c",
    "\u200b",
    "\ufeff",
    "\u0085\u2028",
    "e\u0301" * 40,
    "\U0001f600",
    "x" * 5000,
    "x" * 300,
    "{}",
    "{0}",
    "{topic}",
    "%s",
    "\\",
    "../../../x",
    "/dev/null",
    "/dev/full",
    "/",
    ".",
    "~",
    "-",
    "NaN",
    "null",
    "none",
    "[LABEL]",
    "[TOPIC]",
    "[LABEL] [UNKNOWN] a b c",
    "<|end|>",
    "(" * 50,
    "!!python/object/apply:os.system [touch canary]",
)
SURROGATES = ("\ud800", "a\udfffb", "\udce4")
NUMBERS: tuple[Any, ...] = (
    0,
    1,
    -1,
    2,
    7,
    2**31,
    2**63,
    -(2**63) - 1,
    10**30,
    10**400,
    0.0,
    -0.0,
    0.5,
    1e-320,
    1e308,
    -1.5,
    float("nan"),
    float("inf"),
    float("-inf"),
)
#: Raw JSON that no Python value is written as.
RAW = (
    "9" * 5000,
    "1e999",
    "[" * 2000,
    "[" * 100_000,
    '{"a":' * 500 + "1" + "}" * 500,
    '"\\ud800"',
    '"\\u0000"',
    "NaN",
    "-Infinity",
    "01",
    "'x'",
    '{"a": 1, "a": 2}',
    "",
)


def value(rng: random.Random) -> Any:
    """A nasty JSON value."""
    kind = rng.randrange(8)
    if kind < 3:
        return rng.choice(TEXTS)
    if kind == 3:
        return rng.choice(NUMBERS)
    if kind == 4:
        return rng.choice((None, True, False, [], {}, [[]], [None], {"": ""}, [{}], [[[[[[1]]]]]]))
    if kind == 5:
        return rng.choice(SURROGATES)
    if kind == 6:
        return [rng.choice(TEXTS) for _ in range(rng.randrange(4))]
    return {rng.choice(TEXTS): value(rng) for _ in range(rng.randrange(3))}


def tree(rng: random.Random, whole: Any, changes: int = 1) -> Any:
    """A JSON value with a few of its parts replaced, dropped, doubled, renamed or exchanged."""
    whole = json.loads(json.dumps(whole))
    for _ in range(changes):
        places = list(_places(whole))
        if not places:
            return value(rng)
        holder, key = rng.choice(places)
        way = rng.randrange(8)
        if way == 0:
            del holder[key]
        elif way == 1 and isinstance(holder, dict):
            holder[rng.choice((*TEXTS, str(key).upper(), f"{key}s"))] = holder.pop(key)
        elif way == 2 and isinstance(holder, list):
            holder.insert(key, holder[key])
        elif way == 3:
            other, place = rng.choice(places)
            found = json.loads(json.dumps(_get(other, place)))
            holder[key] = found
        elif way == 4:
            holder[key] = [holder[key]]
        elif way == 5 and isinstance(holder, dict):
            holder[rng.choice(TEXTS)] = value(rng)
        else:
            holder[key] = value(rng)
    return whole


def _get(holder: Any, key: Any) -> Any:
    try:
        return holder[key]
    except (KeyError, IndexError):
        return None


def _places(whole: Any) -> list[tuple[Any, Any]]:
    """Every part of a value, as what holds it and where."""
    found: list[tuple[Any, Any]] = []
    keys = list(whole) if isinstance(whole, dict) else list(range(len(whole))) if isinstance(whole, list) else []
    for key in keys:
        found.append((whole, key))
        found += _places(whole[key])
    return found


def as_json(rng: random.Random, whole: Any) -> bytes:
    """A value as JSON, now and then with something in it that is none, or in another encoding."""
    text = json.dumps(whole, ensure_ascii=rng.random() < 0.7)
    if rng.random() < 0.15 and '"' in text:
        place = rng.choice([at for at, character in enumerate(text) if character in ':["'])
        text = f"{text[: place + 1]}{rng.choice(RAW)}{text[place + 1 :]}"
    encoding = rng.choice(("utf-8",) * 12 + ("utf-8-sig", "utf-16", "latin-1"))
    return text.encode(encoding, "surrogatepass" if encoding.startswith("utf") else "replace")


def _flip(rng: random.Random, data: bytearray) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _truncate(rng: random.Random, data: bytearray) -> None:
    del data[rng.randrange(len(data)) :]


def _insert(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.randbytes(rng.randrange(1, 20))


def _double(rng: random.Random, data: bytearray) -> None:
    start = rng.randrange(len(data))
    block = data[start : start + rng.randrange(1, 200)]
    at = rng.randrange(len(data) + 1)
    data[at:at] = block


def _swap(rng: random.Random, data: bytearray) -> None:
    first, second = rng.randrange(len(data)), rng.randrange(len(data))
    data[first], data[second] = data[second], data[first]


def _random(rng: random.Random, data: bytearray) -> None:
    start = rng.randrange(len(data))
    for at in range(start, min(len(data), start + rng.randrange(1, 30))):
        data[at] = rng.randrange(256)


def _drop(rng: random.Random, data: bytearray) -> None:
    start = rng.randrange(len(data))
    del data[start : start + rng.randrange(1, 60)]


_WAYS: tuple[Callable[[random.Random, bytearray], None], ...] = (
    _flip,
    _truncate,
    _insert,
    _double,
    _swap,
    _random,
    _drop,
)


def at_bytes(rng: random.Random, data: bytes) -> bytes:
    """The bytes with one to four changes."""
    spoilt = bytearray(data)
    for _ in range(rng.randrange(1, 5)):
        if spoilt:
            rng.choice(_WAYS)(rng, spoilt)
    return bytes(spoilt)


def safetensors(rng: random.Random, data: bytes) -> bytes:
    """A safetensors file with its header's length, its header's JSON or its bytes changed."""
    (length,) = struct.unpack("<Q", data[:8])
    way = rng.randrange(4)
    if way == 0:
        wrong = rng.choice((0, 1, length - 1, length + 8, len(data), 2**31, 2**63 - 1, 2**64 - 1))
        return struct.pack("<Q", wrong) + data[8:]
    if way == 1:
        return at_bytes(rng, data)
    header = tree(rng, json.loads(data[8 : 8 + length]), rng.randrange(1, 3))
    text = as_json(rng, header)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]
