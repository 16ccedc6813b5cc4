"""Plots: files of the right size are made without a display, and a missing library or folder is named."""

from __future__ import annotations

import importlib.util
import struct
import subprocess
import sys

import pytest

from ipc.errors import InvalidCall, MissingExtra
from kernel.policy.registry import PolicySettings
from llmosd.simulator.device import DeviceModel
from llmosd.simulator.experiment import ExperimentPlan, ExperimentResult, perform
from llmosd.simulator.outcome import CallOutcome
from llmosd.simulator.plots.save import draw, draw_run, require
from llmosd.simulator.plots.states import spans
from llmosd.simulator.timeline import Interval
from tests.support.paths import ROOT

DEVICE = DeviceModel(step=0.01, sequence=0.002, prompt=0.0005)
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def found() -> ExperimentResult:
    policies = [PolicySettings(kind="fifo"), PolicySettings(kind="attained")]
    return perform(ExperimentPlan(device=DEVICE, policies=policies, tasks=12, seeds=2), timeline=True)


def test_every_plot_is_a_png_and_an_svg(found, tmp_path):
    files = draw(tmp_path / "new", found.runs, found.estimates)
    names = {"gantt-fifo", "gantt-attained", "states-fifo", "states-attained", "queue", "latency", "comparison"}
    assert {path.name for path in files} == {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    for path in files:
        data = path.read_bytes()
        if path.suffix == ".png":
            assert data.startswith(PNG)
            width, height = struct.unpack(">II", data[16:24])
            assert width == 1650
            assert 300 < height < 1700
        else:
            assert b"<svg" in data[:1000]


def test_the_same_run_is_the_same_drawing(found, tmp_path):
    one, other = (draw_run(tmp_path / name, found.runs[0]) for name in ("a", "b") if not (tmp_path / name).mkdir())
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]


def test_no_display_is_looked_for(tmp_path):
    code = f"""
import os, sys
os.environ.pop("DISPLAY", None); os.environ["MPLBACKEND"] = "tkagg"
from pathlib import Path
from llmosd.simulator.plots.save import draw_run
from llmosd.simulator.textbook import textbook
files = draw_run(Path({str(tmp_path)!r}), textbook(measure=False).run)
assert len(files) == 4 and "tkinter" not in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_without_matplotlib_it_is_said_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"llmosd\[plots\].*leave --plot out"):
        require(tmp_path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidCall, match="name a folder that can be written"):
        require(tmp_path / "file" / "folder")


def test_states_follow_each_other_without_a_gap():
    call = CallOutcome(1, 0, 0, "", 0, 5, 9, 1.0, 2.0, 3.0, 10.0, 1, "done")
    intervals = [Interval(0, 1, 7.0, 10.0), Interval(1, 1, 2.0, 5.0)]
    assert spans(call, intervals) == [
        (1.0, 2.0, "waits for a slot"),
        (2.0, 3.0, "reads its prompt"),
        (3.0, 5.0, "makes tokens"),
        (5.0, 7.0, "waits for a slot"),
        (7.0, 10.0, "makes tokens"),
    ]


def test_importing_the_plots_loads_no_matplotlib():
    code = "import sys, llmosd.simulator.plots, llmosd.simulator.experiment; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=ROOT)
