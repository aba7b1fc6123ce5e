"""Whether an editor or a delta that was made for one model may be used on another: the same model in another precision.

Quantising weights, or storing them in another type, moves them by a few percent; other weights are more than their own
length away. Up to :data:`NEAR` an editor or delta is accepted with a warning that states the distance.
"""

from __future__ import annotations

import logging

from instructedit.models.language_model import LanguageModel

logger = logging.getLogger(__name__)

#: Largest relative distance of weights that count as the same model.
NEAR = 0.25
_warned: set[tuple[str, str]] = set()


def fits(language_model: LanguageModel, what: str, base: str, architecture: str, sketch: str) -> bool:
    """Return whether something made for a model may be used on this one; warn once if this one only is near.

    Args:
        language_model: this model.
        what: what is used, for the warning.
        base: weights fingerprint of the model that it was made for.
        architecture: its architecture fingerprint; empty if unknown.
        sketch: its sketch; empty if unknown.
    """
    if base == language_model.fingerprint:
        return True
    distance = language_model.distance_to(architecture, sketch) if architecture and sketch else None
    if distance is None or distance > NEAR:
        return False
    if (base, language_model.fingerprint) not in _warned:
        _warned.add((base, language_model.fingerprint))
        logger.warning(
            "%s was made for the base model %s; %s (%s) is the same model with other weights, %.1f%% away, for example "
            "in another precision: check the edits",
            what,
            base,
            language_model.source,
            language_model.fingerprint,
            100 * distance,
        )
    return True
