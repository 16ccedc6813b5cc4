"""Curves of several policies on one workload: waiting calls over time, and the distribution of latencies.

Drawn from the samples and calls of runs. Of a long curve only some points are drawn; no value is smoothed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmosd.simulator.outcome import DONE, Run
from llmosd.simulator.plots.style import colour, grid, seconds
from llmosd.simulator.report import ttft

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 4000  # per curve


def queue(figure: Figure, runs: Sequence[Run]) -> None:
    """Draw how many calls wait for a slot over time: one panel per policy, all with the same scale."""
    panels = figure.subplots(len(runs), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    end = max((run.samples[-1].time for run in runs if run.samples), default=1.0)
    for number, (axes, run) in enumerate(zip(panels, runs, strict=True)):
        samples = run.samples[:: max(len(run.samples) // POINTS, 1)]
        times, waiting = [one.time for one in samples], [one.waiting for one in samples]
        axes.fill_between(times, waiting, step="post", color=colour(number), alpha=0.35, linewidth=0)
        axes.step(times, waiting, where="post", color=colour(number), linewidth=1.0)
        axes.text(0.01, 0.95, run.policy, transform=axes.transAxes, va="top", weight="bold", color=colour(number))
        axes.set_ylim(bottom=0)
        grid(axes, "y")
    panels[0].set_title("Calls that wait for a slot")
    seconds(panels[-1], end)


def latency(figure: Figure, runs: Sequence[Run]) -> None:
    """Draw, for each time, the share of calls that take longer: to the first token, and to the end.

    Both scales are logarithmic, so that the tails can be seen.
    """
    left, right = figure.subplots(1, 2, sharey=True)
    least = 1.0
    for number, run in enumerate(runs):
        done = [call for call in run.calls if call.outcome == DONE]
        if not done:
            continue
        least = min(least, 1 / len(done))
        width = 1.4 + 2.0 * (len(runs) - 1 - number) / len(runs)  # earlier curves are wider, so none is hidden
        firsts = sorted(value for call in done if (value := ttft(call)) is not None)
        _tail(left, firsts, run.policy, colour(number), width)
        _tail(right, sorted(call.end - call.submitted for call in done), run.policy, colour(number), width)
    for axes, title in ((left, "Time to first token"), (right, "Time to completion")):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("seconds")
        axes.set_title(title)
        axes.set_ylim(least, 1.1)
        for share, name in ((0.5, "p50"), (0.05, "p95"), (0.01, "p99")):
            if share >= least:
                axes.axhline(share, color="#BBBBBB", linewidth=0.8, linestyle=(0, (4, 3)))
                axes.text(1.0, share, f" {name}", transform=axes.get_yaxis_transform(), va="center", fontsize=8)
        grid(axes, "x")
    left.set_ylabel("share of calls that take longer")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=9)


def _tail(axes: Axes, values: list[float], name: str, shade: str, width: float) -> None:
    count = len(values)
    places = sorted({round(count * step / POINTS) for step in range(POINTS)} | set(range(max(count - 200, 0), count)))
    places = [place for place in places if place < count]
    axes.step([max(values[place], 1e-6) for place in places], [1 - place / count for place in places],
              where="post", label=name, color=shade, linewidth=width)  # fmt: skip
