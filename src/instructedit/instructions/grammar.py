"""The scope grammar: instruction templates of each scope, as frames with slots that are expanded at random.

A text encoder that is trained on nine texts of a scope does not learn to read them; one that is trained on thousands
begins to (docs/method.md has the figures). Each scope has a YAML file with its frames and whole texts in
``assets/instructions/scopes``; the slots are in ``assets/instructions/slots.yaml``.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from instructedit.assets import ASSETS, read_yaml
from instructedit.errors import DataError

#: What a scope's file may have beside frames and texts.
KINDS = ("short", "negated", "foreign")

_SLOT = re.compile(r"\{([A-Za-z_0-9]+)\}")


@dataclass(frozen=True)
class Grammar:
    """Templates by scope.

    Where a scope has frames and texts, half of the draws are texts: frames bring number, texts variety. So it is with
    pairs of scopes: half of the draws are a template of each, one after the other, and half are texts that state both.

    Attributes:
        slots: phrases by slot name.
        frames: templates with ``{slot}``, by scope.
        texts: templates without slots, by scope or pair of scopes (``a + b``).
        kinds: templates without slots, by scope and kind: two words, a negation, another language than English.
    """

    slots: Mapping[str, Sequence[str]]
    frames: Mapping[str, Sequence[str]]
    texts: Mapping[str, Sequence[str]]
    kinds: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)

    @property
    def scopes(self) -> list[str]:
        """The scopes and pairs of scopes that the grammar has templates of, sorted."""
        return sorted(self.frames.keys() | self.texts.keys())

    def draw(self, scope: str, rng: random.Random, kinds: float = 0.0) -> str:
        """Return one template of a scope; each slot of a frame is drawn anew.

        Args:
            scope: of ``a + b``, the template states both, or one of each is joined.
            rng: source of the draws.
            kinds: share of templates of the scope's kinds, if it has any.

        Raises:
            DataError: the scope or a slot is not in the grammar.
        """
        if kinds and (by_kind := self.kinds.get(scope)) and rng.random() < kinds:
            return rng.choice(by_kind[rng.choice(sorted(by_kind))])
        frames, texts = self.frames.get(scope), self.texts.get(scope)
        parts = parts_of(scope)
        composed = len(parts) > 1 or bool(frames)
        if texts and (not composed or rng.random() < 0.5):
            return rng.choice(texts)
        if len(parts) > 1:
            rng.shuffle(parts)
            return " ".join(self.draw(part, rng, kinds) for part in parts)
        if not frames:
            raise DataError(f"the grammar has no scope {scope!r}; it has {', '.join(self.scopes)}")
        return self._fill(rng.choice(frames), rng)

    def _fill(self, frame: str, rng: random.Random) -> str:
        """Return the frame with a phrase in place of every slot; phrases may have slots themselves."""

        def phrase(match: re.Match[str]) -> str:
            if match[1] not in self.slots:
                raise DataError(f"the grammar has no slot {match[1]!r}, used in {frame!r}")
            return self._fill(rng.choice(self.slots[match[1]]), rng)

        return _SLOT.sub(phrase, frame)


def parts_of(scope: str) -> list[str]:
    """Return the scopes that ``a + b`` combines."""
    return [part.strip() for part in scope.split("+")]


@cache
def scope_grammar() -> Grammar:
    """Return the bundled grammar."""
    frames: dict[str, list[str]] = {}
    texts: dict[str, list[str]] = {}
    kinds: dict[str, dict[str, list[str]]] = {}
    for file in sorted((ASSETS / "instructions" / "scopes").glob("*.yaml")):
        entry = read_yaml(f"instructions/scopes/{file.name}")
        if "frames" in entry:
            frames[entry["scope"]] = entry["frames"]
        if "texts" in entry:
            texts[entry["scope"]] = entry["texts"]
        kinds[entry["scope"]] = {kind: entry[kind] for kind in KINDS if kind in entry}
    return Grammar(read_yaml("instructions/slots.yaml"), frames, texts, kinds)
