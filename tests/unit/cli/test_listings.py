"""The listings of processes, tasks and slots, on screens from 20 to 80 cells wide."""

from __future__ import annotations

import pytest

from ipc.errors import ErrorInfo
from ipc.syscalls import CrashReport, ProcessInfo, SlotInfo, TaskInfo, Usage
from llmosd.cli import columns, listings
from llmosd.cli.table import KEY, Layout, cells, print_table, table_lines


def process(pid: int = 1, **fields: object) -> ProcessInfo:
    values = {
        "pid": pid,
        "parent": 0,
        "program": "ask",
        "owner": "me",
        "priority": 0,
        "state": "blocked",
        "waits_for": "",
        "threads": 1,
        "mailbox": 0,
        "age": 1.0,
        "usage": Usage(),
    }
    return ProcessInfo(**(values | fields))  # type: ignore[arg-type]


def test_the_list_of_crashes_shows_the_place_of_each_error_once() -> None:
    for message in ("a.py:3: a: no", "a: no"):
        error = ErrorInfo("AgentFailed", message, {"place": "/home/me/a.py:3"})
        report = CrashReport(0.0, 2, 1, "a", "me", "failed", error, 1.0, Usage(), [], 0, [])
        assert columns.CRASH["ERROR"].cell(report) == "AgentFailed: a.py:3: a: no"


@pytest.mark.parametrize("width", [20, 40, 80])
def test_every_listing_fits_and_has_its_key(screen, width: int) -> None:
    long = "a text that is much too long for any column of a table, with the number 1234567"
    for table in (*columns.LISTS.values(), columns.SLOT, columns.SEQUENCE):
        layouts = {name: column.layout for name, column in table.items()}
        row = [123456 if one.weight == KEY or not one.least else long for one in layouts.values()]
        lines, _ = table_lines(layouts, [row], width)
        keys = [name for name, layout in layouts.items() if layout.weight == KEY]
        assert lines[1].split().count("123456") >= len(keys)
        if len(keys) < 2 or width >= 40:
            assert all(cells(line) <= width for line in lines), lines


def shown(screen, width: int, show) -> tuple[list[str], list[str]]:
    """The names of the columns that `show` prints, and its lines."""
    out = screen(width)
    show()
    lines = out.getvalue().splitlines()
    return [name.strip() for name in lines[0].split("  ") if name.strip()], lines


def test_ps_at_80_columns_has_the_number_and_the_wait_of_a_process(screen) -> None:
    rows = [
        process(12345678, state="generating", waits_for="123 tokens so far", program="/home/ann/agents/doubler.py"),
        process(2, parent=12345678, waits_for="the reply of process 12345678"),
    ]
    found, lines = shown(screen, 80, lambda: listings.rows(ProcessInfo, rows, as_json=False))
    assert {"PID", "PROGRAM", "STATE", "WAITS FOR", "TOKENS IN/OUT"} <= set(found)
    assert lines[1].startswith("12345678  …")
    assert "/doubler.py" in lines[1]
    assert "generating" in lines[1]
    assert "123 tokens so far" in lines[1]
    assert all(cells(line) <= 80 for line in lines)


def test_history_at_80_columns_has_arguments_and_results(screen) -> None:
    row = TaskInfo(
        "1a2b3c4d5e6f7a8b", 0, "ask", "me", "done", 1, 1.0, 4.2, "", 12345, 'question="What is the capital?"', "Paris"
    )
    found, lines = shown(screen, 80, lambda: listings.rows(TaskInfo, [row], as_json=False))
    assert found[:3] == ["ID", "PID", "PROGRAM"]
    assert {"STATE", "ARGUMENTS", "RESULT"} <= set(found)
    assert lines[1].split()[:3] == ["1a2b3c4d5e6f7a8b", "12345", "ask"]
    assert 'question="What is' in lines[1]
    assert lines[1].rstrip().endswith("Paris")


def test_slots_at_80_columns_has_the_slots_and_the_queue(screen) -> None:
    row = SlotInfo("simulated", "resident", "", 1, 4, 4, 12, 123456, 98.5, 4000, 0, 300_000_000, [], given=4)
    found, _ = shown(screen, 80, lambda: listings.slots([row], as_json=False))
    assert {"MODEL", "STATE", "USED/GIVEN/SLOTS", "QUEUED", "TOKENS/S"} <= set(found)


def test_a_terminal_without_unicode_gets_three_dots_and_plain_branches(screen) -> None:
    out = screen(30, "ascii")
    print_table({"STATE": Layout(1, 5)}, [("a text that is longer than thirty cells",)])
    assert "..." in out.getvalue()
    listings.tree([process(1), process(2, parent=1), process(3, parent=1)], None)
    assert "|- ask" in out.getvalue()
    assert "`- ask" in out.getvalue()
    assert out.getvalue().isascii()


def test_a_long_chain_of_children_is_drawn_up_to_a_depth() -> None:
    drawn = listings.branches([process(pid, parent=pid - 1) for pid in range(1, 10_001)])
    assert [item.pid for _, item in drawn] == list(range(1, 10_001))
    assert [branch for branch, _ in drawn[:3]] == ["", "└─ ", "   └─ "]
    assert max(len(branch) for branch, _ in drawn) < listings.DEEPEST + 10
