"""Arranging matplotlib's figures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from matplotlib.figure import Figure


@contextmanager
def laid_out(figure: Figure) -> Iterator[None]:
    """Arrange a figure for a PNG of its own resolution, and keep it so while it is saved.

    matplotlib draws a figure with a layout engine twice, only to find out where things are; what
    is arranged already is drawn once.
    """
    engine = figure.get_layout_engine()
    if engine is None:
        yield
        return
    engine.execute(figure)
    figure.set_layout_engine("none")
    try:
        yield
    finally:
        figure.set_layout_engine(engine)
