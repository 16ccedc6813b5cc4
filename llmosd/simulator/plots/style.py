"""The style of all plots: colours that colour-blind readers can distinguish, thin grids, left-aligned titles.

Used by the plots; it never draws a plot itself. The palette is that of Okabe and Ito, "Color Universal Design", 2008.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#7F7F7F", "#B8A900", "#332288", "#882255")
INK, FAINT, GRID = "#222222", "#666666", "#DDDDDD"
WAITING, READING, DECODING, TOOL = "#E69F00", "#56B4E9", "#009E73", "#E8E8E8"

SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "legend.frameon": False,
    "figure.dpi": 100,
    "savefig.dpi": 150,
    "svg.hashsalt": "llmosd",  # the same run gives the same file
}


def colour(number: int) -> str:
    """The colour of series `number`."""
    return PALETTE[number % len(PALETTE)]


def grid(axes: Axes, axis: str) -> None:
    """Draw thin grid lines for `axis`: "x", "y" or "both"."""
    axes.grid(True, axis=axis, color=GRID, linewidth=0.7)  # type: ignore[arg-type]


def seconds(axes: Axes, end: float, start: float = 0.0) -> None:
    """Label the horizontal axis as seconds, from `start` to `end`."""
    axes.set_xlim(start, end)
    axes.set_xlabel("seconds")
