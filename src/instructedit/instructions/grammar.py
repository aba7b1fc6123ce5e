"""Many wordings of one scope: frames with slots, expanded at random.

A text encoder that has read nine wordings of a scope has read nothing; one that has read thousands begins to
read the words (docs/method.md has the figures). The frames and slots are a YAML file of our own.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from instructedit.assets import ASSETS, read_yaml
from instructedit.errors import DataError

_SLOT = re.compile(r"\{([A-Za-z_0-9]+)\}")


@dataclass(frozen=True)
class Grammar:
    """Frames by scope, the slots that they draw from, and whole texts by scope or pair of scopes.

    Where a scope has both, half of the wordings are whole texts: frames bring number, single texts variety. So it is
    with pairs: half are a text of each, one after the other, and half are texts that tell both.
    """

    slots: Mapping[str, Sequence[str]]
    scopes: Mapping[str, Sequence[str]]
    texts: Mapping[str, Sequence[str]]

    def draw(self, scope: str, rng: random.Random) -> str:
        """One wording of a scope; each slot of a frame is drawn anew. Of ``a + b``: a text of both, or one of each.

        Raises:
            DataError: the scope or a slot is not in the grammar.
        """
        frames, texts = self.scopes.get(scope), self.texts.get(scope)
        parts = parts_of(scope)
        composed = len(parts) > 1 or bool(frames)
        if texts and (not composed or rng.random() < 0.5):
            return rng.choice(texts)
        if len(parts) > 1:
            rng.shuffle(parts)
            return " ".join(self.draw(part, rng) for part in parts)
        if not frames:
            known = sorted(self.scopes.keys() | self.texts.keys())
            raise DataError(f"the grammar has no scope {scope!r}; it has {', '.join(known)}")
        return self._fill(rng.choice(frames), rng)

    def _fill(self, text: str, rng: random.Random) -> str:
        def one(match: re.Match[str]) -> str:
            if match[1] not in self.slots:
                raise DataError(f"the grammar has no slot {match[1]!r}, used in {text!r}")
            return self._fill(rng.choice(self.slots[match[1]]), rng)

        return _SLOT.sub(one, text)


def parts_of(scope: str) -> list[str]:
    """The scopes that ``a + b`` is made of."""
    return [part.strip() for part in scope.split("+")]


@cache
def scope_grammar() -> Grammar:
    """The shipped grammar of the scopes."""
    raw = read_yaml("instructions/scope_grammar.yaml")
    texts: dict[str, list[str]] = {}
    for file in sorted((ASSETS / "instructions").glob("scope_texts_*.yaml")):
        for scope, found in read_yaml(f"instructions/{file.name}").items():
            texts.setdefault(scope, []).extend(found)
    return Grammar(raw["slots"], raw["scopes"], texts)


def wordings(kind: str) -> dict[str, list[str]]:
    """Hand-written wordings by task that no training sees: ``validation`` to choose with, ``test`` to report."""
    found: dict[str, list[str]] = read_yaml(f"wording/scope_{kind}.yaml")
    return found


def unrelated_texts() -> list[str]:
    """Texts of our own that have nothing to do with editing: what a text that says nothing about it comes to."""
    return list(read_yaml("wording/unrelated.yaml")["texts"])
