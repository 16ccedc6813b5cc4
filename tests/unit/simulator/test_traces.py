"""Reading arrival traces: the tasks in them, and named errors for mistakes in them."""

from __future__ import annotations

import gzip
import itertools
import tomllib
from pathlib import Path

import pytest

from ipc.errors import InvalidWorkload
from llmosd.simulator import traces
from llmosd.simulator.device import DeviceModel
from llmosd.simulator.experiment import SHIPPED_TRACES
from llmosd.simulator.load import stretched
from llmosd.simulator.workload import WorkloadCall
from tests.support.paths import ROOT

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
ROWS = "2023-11-16 18:15:46.5000000,374,44\n2023-11-16 18:15:50.7500000,396,109\n"


def read(tmp_path: Path, text: str, scale: float = 1.0) -> list:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    return traces.read(path, scale)


def test_a_trace_begins_at_its_first_call(tmp_path):
    tasks = read(tmp_path, HEADER + ROWS)
    assert [(task.arrival, task.calls) for task in tasks] == [
        (0.0, (WorkloadCall(prompt=374, tokens=44),)),
        (4.25, (WorkloadCall(prompt=396, tokens=109),)),
    ]


def test_token_counts_are_scaled_and_stay_above_zero(tmp_path):
    tasks = read(tmp_path, HEADER + ROWS, scale=0.02)
    assert [task.calls[0] for task in tasks] == [WorkloadCall(prompt=7, tokens=1), WorkloadCall(prompt=8, tokens=2)]


def test_a_compressed_trace_is_the_same(tmp_path):
    path = tmp_path / "trace.csv.gz"
    path.write_bytes(gzip.compress((HEADER + ROWS).encode()))
    assert traces.read(path) == read(tmp_path, HEADER + ROWS)


def test_the_wheel_holds_the_shipped_traces():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert SHIPPED_TRACES.relative_to(ROOT).parts[0] in folders
    assert len(list(SHIPPED_TRACES.glob("*.csv.gz"))) == 2


def test_the_shipped_traces_are_whole():
    conversation, code = (traces.read(SHIPPED_TRACES / f"azure_llm_2023_{name}.csv.gz") for name in ("conv", "code"))
    assert (len(conversation), len(code)) == (19_366, 8_819)
    both = traces.merged([conversation, code])
    assert len(both) == 28_185
    assert all(before.arrival <= after.arrival for before, after in itertools.pairwise(both))
    assert 3400 < both[-1].arrival < 3700


def test_time_is_stretched_to_a_load(tmp_path):
    tasks = read(tmp_path, HEADER + ROWS)
    # Alone the calls take 44 + 109 steps of a second on one slot.
    again, factor = stretched(tasks, 0.5, DeviceModel(step=1.0), 1)
    assert factor == pytest.approx(153 / 0.5 / 4.25)
    assert [task.arrival for task in again] == [0.0, pytest.approx(306.0)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no column TIMESTAMP, ContextTokens, GeneratedTokens; found: none"),
        ("TIMESTAMP,ContextTokens\n2023-11-16 18:15:46,1\n", "no column GeneratedTokens; found: TIMESTAMP"),
        (HEADER, "no rows"),
        (HEADER + "yesterday,1,2\n", "line 2: Invalid isoformat"),
        (HEADER + ROWS + "2023-11-16 18:15:51,many,2\n", "line 4: invalid literal"),
        (HEADER + ROWS + "2023-11-16 18:15:51,4\n", "line 4"),
        (HEADER + ROWS + "2023-11-16 18:15:51,-4,2\n", "line 4: a negative number"),
        (HEADER + ROWS + "2023-11-16 18:15:49,4,2\n", "line 4: time runs backwards, to 2023-11-16 18:15:49"),
    ],
)
def test_what_is_wrong_with_a_trace_is_named(tmp_path, text, said):
    with pytest.raises(InvalidWorkload, match=said):
        read(tmp_path, text)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InvalidWorkload, match="No such file"):
        traces.read(tmp_path / "none.csv")
    broken = tmp_path / "broken.csv.gz"
    broken.write_bytes(b"not gzip")
    with pytest.raises(InvalidWorkload, match="cannot be read"):
        traces.read(broken)
    with pytest.raises(InvalidWorkload, match="scale of 0"):
        traces.read(SHIPPED_TRACES / "azure_llm_2023_conv.csv.gz", 0.0)
