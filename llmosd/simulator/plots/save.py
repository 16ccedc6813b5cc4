"""Draws the plots of runs into a folder, each as PNG and SVG.

Used by `llmos simulate`. It loads matplotlib only when it draws, and never opens a display.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ipc.errors import InvalidCall, MissingExtra
from llmosd.simulator.outcome import Run
from llmosd.simulator.plots.comparison import PANELS, comparison
from llmosd.simulator.plots.curves import latency, queue
from llmosd.simulator.plots.gantt import gantt
from llmosd.simulator.plots.states import ROWS, states
from llmosd.simulator.plots.style import SETTINGS
from llmosd.simulator.report import Estimates

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 11.0  # inches
FORMATS = ("png", "svg")

Drawing = Callable[["Figure"], None]


def require(folder: Path) -> None:
    """Check, before the simulation, that plots can be drawn into `folder`. Makes the folder if necessary.

    Raises `MissingExtra` without matplotlib, and `InvalidCall` if the folder cannot be made.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtra(
            "plots need matplotlib: pip install 'llmosd[plots]', or leave --plot out for the table", extra="plots"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidCall(f"--plot {folder}: {error.strerror}; name a folder that can be written") from None


def draw(folder: Path, runs: Sequence[Run], estimates: Mapping[str, Estimates]) -> list[Path]:
    """Draw `runs`, one per policy, and the `estimates` of each policy. Returns the files that it wrote."""
    require(folder)
    written: list[Path] = []
    for run in runs:
        written += draw_run(folder, run)
    written += _save(folder / "queue", 1.2 + 1.4 * len(runs), partial(queue, runs=runs))
    written += _save(folder / "latency", 5.0, partial(latency, runs=runs))
    panels = sum(any(name in one for one in estimates.values()) for name in PANELS)
    height = -(-panels // 4) * (0.9 + 0.3 * len(estimates))
    written += _save(folder / "comparison", height, partial(comparison, estimates=estimates))
    return written


def draw_run(folder: Path, run: Run) -> list[Path]:
    """Draw the slots and the states of one run. Returns the files that it wrote."""
    slots = max((one.slot for one in run.intervals), default=0) + 1
    rows = min(len({call.task for call in run.calls}), ROWS)
    written = _save(folder / f"gantt-{run.policy}", 1.6 + 0.28 * min(slots, 40), partial(gantt, run=run))
    written += _save(folder / f"states-{run.policy}", 1.9 + 0.22 * rows, partial(states, run=run))
    return written


def _save(path: Path, height: float, drawing: Drawing) -> list[Path]:
    """Draw one figure and write it in each format, without a display."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(WIDTH, max(height, 2.2)), layout="constrained")
        FigureCanvasAgg(figure)
        drawing(figure)
        written = []
        for kind in FORMATS:
            file = path.with_name(f"{path.name}.{kind}")
            metadata: dict[str, Any] = {"Date": None} if kind == "svg" else {}
            try:
                figure.savefig(file, format=kind, metadata=metadata)
            except OSError as error:
                raise InvalidCall(f"{file}: {error.strerror}; name a folder that can be written") from None
            written.append(file)
    return written
