"""A timeline of the states of processes: waiting for a slot, reading a prompt, making tokens, waiting for a tool.

Drawn from the calls and intervals of a run. It shows only the first tasks of a long run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmosd.simulator.outcome import CallOutcome, Run
from llmosd.simulator.plots.style import DECODING, READING, TOOL, WAITING, grid, seconds
from llmosd.simulator.timeline import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS = 30  # tasks
STATES = {"waits for a slot": WAITING, "reads its prompt": READING, "makes tokens": DECODING, "waits for a tool": TOOL}

Span = tuple[float, float, str]  # from, to, state


def states(figure: Figure, run: Run) -> None:
    """Draw one row per task, in order of arrival."""
    from matplotlib.patches import Patch

    axes = figure.subplots()
    intervals: dict[int, list[Interval]] = {}
    for one in run.intervals:
        intervals.setdefault(one.call, []).append(one)
    calls: dict[int, list[CallOutcome]] = {}
    for call in run.calls:
        calls.setdefault(call.task, []).append(call)
    tasks = sorted(calls, key=lambda task: (run.tasks[task].task.arrival, task))[:ROWS]
    end = max((call.end for task in tasks for call in calls[task]), default=1.0)
    bars: dict[str, list[tuple[int, float, float]]] = {name: [] for name in reversed(STATES)}
    for row, task in enumerate(tasks):
        own, start = calls[task], run.tasks[task].task.arrival
        bars["waits for a tool"].append((row, start, max(call.end for call in own)))
        for call in own:
            for begin, stop, state in spans(call, intervals.get(call.call, [])):
                bars[state].append((row, begin, stop))
    for state, drawn in bars.items():
        lengths, starts = [stop - begin for _, begin, stop in drawn], [begin for _, begin, _ in drawn]
        axes.barh([row for row, _, _ in drawn], lengths, left=starts, height=0.7, color=STATES[state])
    axes.set_ylim(len(tasks) - 0.4, -0.6)
    axes.set_yticks(range(len(tasks)), [run.tasks[task].task.name or f"task {task}" for task in tasks], fontsize=8)
    axes.tick_params(axis="y", length=0)
    seconds(axes, end)
    grid(axes, "x")
    cut = f", first {len(tasks)} of {len(calls)} tasks" if len(tasks) < len(calls) else ""
    axes.set_title(f"States of processes under {run.policy}{cut}")
    used = [Patch(color=shade, label=name) for name, shade in STATES.items()]
    axes.legend(handles=used, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=4, fontsize=9)


def spans(call: CallOutcome, intervals: list[Interval]) -> list[Span]:
    """The states of `call`: spans from its submission to its end, without gaps between them."""
    found: list[Span] = []
    now = call.submitted
    for one in sorted(intervals, key=lambda one: one.start):
        found.append((now, one.start, "waits for a slot"))
        first = one.end if call.first is None else min(max(call.first, one.start), one.end)
        found += [(one.start, first, "reads its prompt"), (first, one.end, "makes tokens")]
        now = one.end
    found.append((now, call.end, "waits for a slot"))
    return [span for span in found if span[1] > span[0]]
