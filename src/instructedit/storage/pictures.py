"""Figures as small PNG files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from instructedit.storage.writing import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: A plot has a few colours and their shades at the edges; a palette makes its file three times smaller.
COLOURS = 64


def save_figure(figure: Figure, path: str | Path, *, dpi: int = 110) -> None:
    """Write a figure as a PNG file with a palette; needs matplotlib, which brings Pillow.

    Raises:
        DataError: the file cannot be written.
    """
    from PIL import Image

    drawn, reduced = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, dpi=dpi, format="png")
    with Image.open(drawn) as image:
        palette = image.convert("RGB").quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        palette.save(reduced, "PNG", optimize=True)
    write_atomically(path, reduced.getvalue())
