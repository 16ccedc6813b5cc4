"""Tables on a narrow screen: numbers of processes and tasks stay, other columns go by weight, and texts are cut."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc.syscalls import ProcessInfo, SlotInfo, TaskInfo, Usage
from llmosd.cli import columns, listings
from llmosd.cli.table import GAP, KEY, LEAST, Layout, cells, fit, print_table, shorten, table_lines

COLUMNS = {"PID": Layout(KEY), "PROGRAM": Layout(9, 8), "STATE": Layout(5), "WAITS FOR": Layout(3, 9), "BOX": Layout(1)}
ROW = (123456, "researcher_of_things", "blocked", "the reply of process 17", 3)


class Screen(io.StringIO):
    """Standard output as a terminal, or as a pipe, in an encoding."""

    def __init__(self, terminal: bool, encoding: str) -> None:
        super().__init__()
        self._terminal = terminal
        self._encoding = encoding

    def isatty(self) -> bool:
        return self._terminal

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding


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


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch):
    def make(width: int | None, encoding: str = "utf-8") -> Screen:
        """Standard output: a terminal of `width` cells, or a pipe."""
        out = Screen(width is not None, encoding)
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setenv("TERM", "dumb")
        monkeypatch.setenv("COLUMNS", str(width or 10))
        return out

    return make


def header(width: int | None, rows: Sequence[Sequence[object]] = (ROW,)) -> list[str]:
    return table_lines(COLUMNS, rows, width)[0][0].split("  ")


def test_without_a_width_all_columns_are_in_full() -> None:
    lines, hidden = table_lines(COLUMNS, [ROW, (7, "ask", "ready", "", 0)], None)
    assert lines == [
        "   PID  PROGRAM               STATE    WAITS FOR                BOX",
        "123456  researcher_of_things  blocked  the reply of process 17    3",
        "     7  ask                   ready                               0",
    ]
    assert hidden == 0


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (67, "123456  researcher_of_things  blocked  the reply of process 17    3"),
        (66, "123456  researcher_of_things  blocked  the reply of process …    3"),
        (61, "123456  researcher_of_thi…  blocked  the reply of proce…    3"),
        (50, "123456  researcher_…  blocked  the reply of …    3"),
        (41, "123456  researc…  blocked  the repl…    3"),
        (40, "123456  researche…  blocked  the reply …"),
        (30, "123456  researc…  blocked    3"),
        (20, "123456  researcher_…"),
        (14, "123456  resea…"),
        (10, "123456"),
        (3, "123456"),
    ],
)
def test_columns_go_by_weight_and_the_number_of_the_process_stays(width: int, line: str) -> None:
    shown = table_lines(COLUMNS, [ROW], width)[0]
    assert shown[1] == line
    assert all(cells(line) <= max(width, 6) for line in shown)


@given(
    st.lists(st.tuples(st.integers(1, KEY), st.integers(0, 12), st.integers(1, 60)), min_size=1, max_size=12),
    st.integers(1, 200),
)
def test_chosen_columns_fit_and_no_number_is_cut(sizes: list[tuple[int, int, int]], width: int) -> None:
    layouts = [Layout(weight, least) for weight, least, _ in sizes]
    natural = [full for _, _, full in sizes]
    chosen = fit(layouts, natural, width)
    assert list(chosen) == sorted(chosen)
    assert {at for at, layout in enumerate(layouts) if layout.weight == KEY} <= set(chosen)
    for at, cells_of_it in chosen.items():
        assert cells_of_it <= natural[at]
        assert cells_of_it >= min(natural[at], min(layouts[at].least, LEAST) or natural[at])
    total = sum(chosen.values()) + GAP * (len(chosen) - 1)
    assert total <= width or all(layouts[at].weight == KEY for at in chosen)
    if len(chosen) == len(sizes) and total < width:
        assert list(chosen.values()) == natural  # no text is cut while there is room


def test_texts_share_the_room_that_is_left() -> None:
    layouts = [Layout(2, 5), Layout(1, 5), Layout(3, 5)]
    assert fit(layouts, [50, 8, 50], 40) == {0: 14, 1: 8, 2: 14}


def test_an_empty_column_is_the_first_to_go() -> None:
    for state, row in (("", (1, "ask", "", "a lock", 3)), ("blocked", (1, "ask", "blocked", "a lock", ""))):
        assert ("STATE" in header(30, [row])) is bool(state)
        assert ("BOX" in header(30, [row])) is not state


@pytest.mark.parametrize(
    ("text", "width", "path", "short"),
    [
        ("short", 5, False, "short"),
        ("a long text", 6, False, "a lon…"),
        ("日本語です", 6, False, "日本…"),
        ("日本語です", 5, False, "日本…"),
        ("e\u0301te\u0301 long", 4, False, "e\u0301te\u0301…"),
        ("👍👍👍", 4, False, "👍…"),
        ("/home/ann/agents/doubler.py", 12, True, "…/doubler.py"),
        ("a name without a slash", 8, True, "a name …"),
        ("17, 18, 1234", 10, False, "17, 18, …"),
        ("17, 18, 12", 10, False, "17, 18, 12"),
        ("process 1234 waits", 13, False, "process 1234…"),
        ("1234567890", 6, False, "12345…"),
        ("text", 0, False, ""),
    ],
)
def test_a_text_is_cut_where_it_says_least(text: str, width: int, path: bool, short: str) -> None:
    assert shorten(text, width, path=path) == short
    assert cells(short) <= width


def test_characters_of_two_cells_keep_the_columns_aligned() -> None:
    columns = {"NAME": Layout(2), "N": Layout(1)}
    lines, _ = table_lines(columns, [("日本", 1), ("abcd", 2), ("e\u0301", 3)], None)
    assert [cells(line) for line in lines] == [7, 7, 7, 7]


def test_no_cell_controls_the_terminal_or_breaks_the_line() -> None:
    (_, line), _ = table_lines({"NAME": Layout(1)}, [("\x1b]0;title\x07\nnext\trow\u202e",)], None)
    assert line == r"\x1b]0;title\x07\nnext\trow\u202e"


def test_a_pipe_gets_everything_and_a_terminal_what_fits(screen, capsys) -> None:
    for width, wide, hidden in ((None, False, 0), (40, False, 1), (40, True, 0)):
        out = screen(width)
        print_table(COLUMNS, [ROW], wide=wide)
        assert ("BOX" in out.getvalue()) is not hidden
        assert ("researcher_of_things" in out.getvalue()) is not hidden
        assert capsys.readouterr().err == "llmos: 1 column hidden; --wide shows all\n" * hidden


def test_a_terminal_without_unicode_gets_three_dots_and_plain_branches(screen) -> None:
    out = screen(30, "ascii")
    print_table(COLUMNS, [ROW])
    assert "..." in out.getvalue()
    listings.tree([process(1), process(2, parent=1), process(3, parent=1)], None)
    assert "|- ask" in out.getvalue()
    assert "`- ask" in out.getvalue()
    assert out.getvalue().isascii()


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


def names(lines: Iterable[str]) -> list[str]:
    return next(iter(lines)).split("  ")


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


def test_a_long_cell_and_many_rows_are_quick(screen) -> None:
    """Quick enough for this test to end; a quadratic algorithm would not."""
    screen(80)
    print_table(COLUMNS, [(1, "日" * 1_000_000, "x" * 1_000_000, "\x1b" * 1_000_000, 2)])
    print_table(COLUMNS, [(n, "日本語", "state", "e\u0301 text", 2) for n in range(10_000)])
