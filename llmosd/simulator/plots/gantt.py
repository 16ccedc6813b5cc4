"""A Gantt chart of the slots: one row per slot, with the tasks that were on it over time.

Drawn from the intervals of a run. It shows only the beginning of a long run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmosd.simulator.outcome import Run
from llmosd.simulator.plots.style import FAINT, colour, grid, seconds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BARS = 400  # more cannot be distinguished
LABELLED = 0.035  # the share of the width from which on a bar has room for a name


def gantt(figure: Figure, run: Run) -> None:
    """Draw one row per slot and one colour per task."""
    axes = figure.subplots()
    intervals = sorted(run.intervals, key=lambda one: (one.start, one.slot))
    end = intervals[BARS].start if len(intervals) > BARS else max((one.end for one in intervals), default=1.0)
    calls = {call.call: call for call in run.calls}
    shown = [one for one in intervals if one.start < end]
    widths = [min(one.end, end) - one.start for one in shown]
    axes.barh(
        [one.slot for one in shown],
        widths,
        left=[one.start for one in shown],
        height=0.8,
        color=[colour(calls[one.call].task) for one in shown],
        edgecolor="white",
        linewidth=0.6,
    )
    for one, width in zip(shown, widths, strict=True):
        task = calls[one.call].task
        if width > LABELLED * end:
            name = run.tasks[task].task.name or f"{task}"
            axes.text(
                one.start + width / 2, one.slot, name, ha="center", va="center", color="white", fontsize=8, clip_on=True
            )
    slots = max((one.slot for one in shown), default=0) + 1
    axes.set_ylim(slots - 0.4, -0.6)
    axes.set_yticks(range(slots) if slots <= 16 else range(0, slots, 8))
    axes.set_ylabel("slot")
    axes.tick_params(axis="y", length=0)
    seconds(axes, end)
    grid(axes, "x")
    cut = "" if len(shown) == len(intervals) else f", first {len(shown)} of {len(intervals)} turns"
    axes.set_title(f"Slots under {run.policy}: one colour per task{cut}")
    axes.annotate(
        f"{sum(call.preemptions for call in run.calls)} preemptions",
        (1, 1.02),
        xycoords="axes fraction",
        ha="right",
        color=FAINT,
        fontsize=9,
    )
