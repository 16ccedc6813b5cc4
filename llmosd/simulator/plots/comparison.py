"""Policies side by side: one panel per figure, with means over seeds and their 95% intervals.

Drawn from the estimates of an experiment; it computes no figure itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from llmosd.simulator.plots.style import INK, colour, grid
from llmosd.simulator.report import Estimates

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = {
    "task_per_token.mean": "Task per token, mean (s)",
    "task_per_token.p99": "Task per token, p99 (s)",
    "ttft.mean": "First token, mean (s)",
    "call.p99": "Call, p99 (s)",
    "goodput": "Goodput (calls/s)",
    "preemptions": "Preemptions",
    "gap": "Service gap (tokens)",
    "misses": "Missed deadlines (share)",
}


def comparison(figure: Figure, estimates: Mapping[str, Estimates]) -> None:
    """Draw the `estimates` of each policy. A panel for which no policy has a value is left out."""
    shown = [name for name in PANELS if any(name in figures for figures in estimates.values())]
    columns = min(len(shown), 4)
    panels = list(figure.subplots(math.ceil(len(shown) / columns), columns, squeeze=False).flat)
    policies = list(estimates)
    for axes, name in zip(panels, shown, strict=False):
        top = 0.0
        for place, policy in enumerate(policies):
            if (one := estimates[policy].get(name)) is None:
                continue
            half = 0.0 if math.isinf(one.half) else one.half
            axes.barh(place, one.mean, height=0.65, color=colour(place))
            if half:
                axes.errorbar(one.mean, place, xerr=half, color=INK, capsize=3, linewidth=1.2)
            top = max(top, one.mean + half)
        for place, policy in enumerate(policies):
            if (one := estimates[policy].get(name)) is not None:
                half = 0.0 if math.isinf(one.half) else one.half
                axes.text(one.mean + half + 0.03 * (top or 1), place, number(one.mean), va="center", fontsize=8)
        axes.set_xlim(0, 1.25 * top or 1.0)
        axes.set_ylim(len(policies) - 0.4, -0.6)
        first = axes.get_subplotspec().is_first_col()
        axes.set_yticks(range(len(policies)), policies if first else [""] * len(policies))
        axes.tick_params(axis="y", length=0)
        axes.set_title(PANELS[name], fontsize=10)
        grid(axes, "x")
    for axes in panels[len(shown) :]:
        axes.set_visible(False)


def number(value: float) -> str:
    """`value` with three digits and without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
