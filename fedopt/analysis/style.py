"""How figures look: sizes, colours and plain axes, the same in all of them."""

from __future__ import annotations

from matplotlib.axes import Axes

# Okabe and Ito, "Color universal design", 2008: told apart by colour-blind readers. Its yellow
# is left out, too faint for a line on white; grey takes its place.
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#7F7F7F",
)
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

WIDTH, HEIGHT, DPI = 7.0, 2.8, 200  # inches, inches, dots per inch: a two-column page
COLUMN = 3.3  # inches: one column of two
WIDTHS = {"text": WIDTH, "column": COLUMN}
TEXT, SMALL = 8.0, 7.0  # points
FEW = 15  # points: up to here each measurement gets a marker


def tidy(axes: Axes) -> None:
    """Give axes a faint grid behind the data, small ticks, and no frame above or to the right."""
    axes.tick_params(labelsize=SMALL, width=0.6, length=2.5)
    axes.grid(True, color="#E6E6E6", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        axes.spines[side].set_linewidth(0.6)
