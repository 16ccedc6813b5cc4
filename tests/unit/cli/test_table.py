"""Tables on a narrow screen: columns go by weight, numbers stay whole, texts are cut, and no cell does harm."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from llmosd.cli.table import KEY, Layout, cells, print_table, table_lines

COLUMNS = {"PID": Layout(KEY), "PROGRAM": Layout(9, 8), "STATE": Layout(5), "WAITS FOR": Layout(3, 9), "BOX": Layout(1)}
ROW = (123456, "researcher_of_things", "blocked", "the reply of process 17", 3)


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
        (50, "123456  researcher_of_…  blocked  the reply of pr…"),
        (41, "123456  researcher_of_thin…  blocked    3"),
        (30, "123456  researcher_o…  blocked"),
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


def test_an_empty_column_is_the_first_to_go() -> None:
    for state, row in (("", (1, "ask", "", "a lock", 3)), ("blocked", (1, "ask", "blocked", "a lock", ""))):
        assert ("STATE" in header(30, [row])) is bool(state)
        assert ("BOX" in header(30, [row])) is not state


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


def test_a_long_cell_and_many_rows_are_quick(screen) -> None:
    """Quick enough for this test to end; a quadratic algorithm would not."""
    screen(80)
    print_table(COLUMNS, [(1, "日" * 1_000_000, "x" * 1_000_000, "\x1b" * 1_000_000, 2)])
    print_table(COLUMNS, [(n, "日本語", "state", "e\u0301 text", 2) for n in range(10_000)])
