"""Instruction templates: the texts that say what kind of edit an edit is, and how they become an instruction."""

from __future__ import annotations

import random
from functools import cache
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from instructedit.assets import ASSETS, read_yaml
from instructedit.errors import DataError
from instructedit.instructions.grammar import scope_grammar
from instructedit.records import EditRequest

Line = Annotated[str, StringConstraints(min_length=1, pattern=r"^[^\n]*$")]

#: The name in an instruction whose text is to be read without the help of a task's name.
NEUTRAL_NAME = "Edit"
#: What a template may leave open, and the field of the request that fills it in.
PLACEHOLDERS = {"[LABEL]": "label", "[TOPIC]": "subject"}
#: Share of the templates drawn from the scope grammar that stand behind :data:`NEUTRAL_NAME`.
_NEUTRAL_SHARE = 0.8

#: Held-out templates of a scope: ``validation`` to choose an editor by, ``test`` to report. The others are further test
#: templates, each of one kind: they say the scope by what is not to happen, in a few words, in another language than
#: English, or with spelling mistakes.
Split = Literal["validation", "test", "negated", "short", "foreign", "misspelt"]
SPLITS: tuple[Split, ...] = get_args(Split)


class InstructionTemplates(BaseModel):
    """The instruction templates of a task.

    ``[LABEL]`` and ``[TOPIC]`` in a template are filled in from the request.

    Attributes:
        name: what stands after ``Task:`` in an instruction.
        templates: templates that training draws.
        held_out_templates: templates that no training draws; evaluations use them, so that instructions are unseen.
        scope: a scope of the grammar whose templates training draws as well; ``a + b`` is both.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Line
    templates: tuple[Line, ...] = Field(min_length=1)
    held_out_templates: tuple[Line, ...] = Field(min_length=1)
    scope: str | None = None

    @property
    def all_templates(self) -> tuple[str, ...]:
        """The training templates, then the held-out ones."""
        return self.templates + self.held_out_templates

    @property
    def placeholders(self) -> tuple[str, ...]:
        """The placeholders that every template has: a text without one would not say what the task is about."""
        return tuple(mark for mark in PLACEHOLDERS if all(mark in text for text in self.all_templates))

    def render(self, template: str, request: EditRequest | None = None, name: str | None = None) -> str:
        r"""Return ``Task: <name>\nDescription: <template>`` with the request's label and topic filled in.

        Args:
            template: the text.
            request: fills the placeholders.
            name: stands in place of the task's own name.

        Raises:
            DataError: the template has a placeholder that the request does not fill.
        """
        for placeholder, field in PLACEHOLDERS.items():
            if placeholder in template:
                value = getattr(request, field, None)
                if value is None:
                    raise DataError(
                        f"the instruction template of {self.name} contains {placeholder}, but the request has no "
                        "value for it; set its label and subject",
                        field="instruction",
                    )
                template = template.replace(placeholder, value)
        return f"Task: {name or self.name}\nDescription: {template}"

    def render_held_out(self, request: EditRequest | None = None) -> str:
        """Return the instruction of the first held-out template."""
        return self.render(self.held_out_templates[0], request)

    def draw(self, request: EditRequest | None, rng: random.Random) -> str:
        """Return the instruction of a training template drawn at random."""
        return self.render(rng.choice(self.templates), request)

    def draw_for_training(
        self, request: EditRequest, rng: random.Random, scope_share: float, kinds: float = 0.0
    ) -> str:
        """Return an instruction for training.

        Args:
            request: fills the placeholders.
            rng: source of the draws.
            scope_share: probability that the template comes from the scope grammar. Most of those stand behind a
                neutral name, so that the editor has to read the scope from the text.
            kinds: see :meth:`Grammar.draw`.
        """
        if self.scope is None or rng.random() >= scope_share:
            return self.draw(request, rng)
        name = NEUTRAL_NAME if rng.random() < _NEUTRAL_SHARE else self.name
        return self.render(scope_grammar().draw(self.scope, rng, kinds), request, name)


@cache
def held_out_templates(split: Split) -> dict[str, tuple[str, ...]]:
    """Return the templates of a split by scope. They are hand-written, and no training draws them."""
    entries = [
        read_yaml(f"instructions/held_out/{file.name}")
        for file in sorted((ASSETS / "instructions" / "held_out").glob("*.yaml"))
    ]
    return {entry["scope"]: tuple(entry[split]) for entry in entries if split in entry}


def unrelated_texts() -> tuple[str, ...]:
    """Return texts that have nothing to do with editing: a control for what an instruction contributes."""
    return tuple(read_yaml("instructions/unrelated.yaml")["texts"])
