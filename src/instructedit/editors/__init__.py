"""Editors: each turns edit requests into weight deltas."""

from instructedit.editors import instructedit, mend  # register themselves

__all__ = ["instructedit", "mend"]
