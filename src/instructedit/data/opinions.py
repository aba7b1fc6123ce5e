"""The questions with which ConvSent asks for an opinion, from the shipped templates."""

from __future__ import annotations

from instructedit.assets import read_yaml


def opinion_questions() -> tuple[str, ...]:
    """Our own ways to ask for an opinion about ``{topic}``; the data set itself ships none."""
    return tuple(read_yaml("templates/opinions.yaml")["questions"])
