"""The columns that fit into a width, and the part of a text that fits into a cell."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmosd.cli.table import EXTRA, GAP, KEY, LEAST, Layout, cells, fit, shorten


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


def test_a_column_of_little_weight_leaves_the_others_readable() -> None:
    layouts = [Layout(9, 8), Layout(EXTRA), Layout(EXTRA - 1)]
    assert fit(layouts, [30, 4, 4], 24) == {0: 18, 1: 4}
    assert fit(layouts, [30, 4, 4], 28) == {0: 16, 1: 4, 2: 4}
