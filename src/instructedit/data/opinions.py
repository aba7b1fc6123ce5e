"""Questions that ask for an opinion about a topic, which ConvSent itself does not ship."""

from __future__ import annotations

from instructedit.assets import read_yaml


def opinion_questions() -> tuple[str, ...]:
    """Return questions that ask for an opinion about ``{topic}``."""
    return tuple(read_yaml("templates/opinions.yaml")["questions"])
