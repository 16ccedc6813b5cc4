"""Prints a table: on a terminal the columns that fit its width, elsewhere and with `wide` all columns in full.

Called by `llmosd.cli.listings` and by the reports of `llmos simulate`; `llmos top` uses `fit` and `shorten`. Columns
that identify a row are never cut and never left out. It uses no library, because that of `llmos top` would take twice
the time of a whole small command.
"""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from llmosd.printable import printable_line
from llmosd.standard_streams import encodable, write_unescaped

GAP = 2  # cells between two columns
EXTRA = 5  # columns of less weight are shown only if they leave the others readable
KEY = 100  # the weight of a column that identifies a row: it is always shown in full
LEAST = 4  # cells of the first column that does not identify the row
WIDTH = 80  # of a terminal that does not report its width


class Layout(NamedTuple):
    """How a column competes for room. A narrow screen drops the columns of the least `weight` first.

    `least`: a text may be cut to this many cells before columns of less weight are dropped; 0: the column is never cut.
    `path`: cut a path at its beginning, because its end says more.
    """

    weight: int
    least: int = 0
    path: bool = False


def print_table(columns: Mapping[str, Layout], rows: Sequence[Sequence[object]], *, wide: bool = False) -> None:
    """Print `rows`, whose cells are in the order of `columns`, under a header. Standard error names what is hidden."""
    terminal = sys.stdout.isatty()
    width = None if wide or not terminal else screen_width()
    bold = terminal and os.environ.get("TERM", "dumb") != "dumb"
    ellipsis = "…" if encodable("…") else "..."
    lines, hidden = table_lines(columns, rows, width, ellipsis)
    if bold:
        lines[0] = f"\x1b[1m{lines[0]}\x1b[0m"
    write_unescaped("\n".join(lines) + "\n")
    if hidden and rows:
        sys.stdout.flush()
        print(f"llmos: {hidden} column{'s' * (hidden > 1)} hidden; --wide shows all", file=sys.stderr)


def table_lines(
    columns: Mapping[str, Layout], rows: Sequence[Sequence[object]], width: int | None, ellipsis: str = "…"
) -> tuple[list[str], int]:
    """The lines of a table that is at most `width` cells wide, the header first, and the number of hidden columns.

    With `width` None, all columns are shown in full.
    """
    # A cell is first cut to more characters than the screen has cells, so a long text costs no more than a short one.
    most = None if width is None else max(width, 1) + 1
    texts = [[_cell(cell, layout, most) for cell, layout in zip(row, columns.values(), strict=True)] for row in rows]
    names, layouts = list(columns), list(columns.values())
    by_column = list(zip(*texts, strict=True)) or [()] * len(names)
    natural = [max(map(cells, (name, *column))) for name, column in zip(names, by_column, strict=True)]
    if width is None:
        widths = dict(enumerate(natural))
    else:
        empty = [bool(rows) and not any(column) for column in by_column]
        widths = fit(layouts, natural, width, empty=empty)
    numbers = {at for at in widths if _is_numeric([row[at] for row in rows])}

    def line(row: Sequence[str]) -> str:
        parts = []
        for at, most_cells in widths.items():
            text = shorten(row[at], most_cells, ellipsis, path=layouts[at].path)
            padding = " " * (most_cells - cells(text))
            parts.append(padding + text if at in numbers else text + padding)
        return (" " * GAP).join(parts).rstrip()

    return [line(names), *map(line, texts)], len(names) - len(widths)


def fit(
    layouts: Sequence[Layout], natural: Sequence[int], width: int, *, empty: Sequence[bool] = (), gap: int = GAP
) -> dict[int, int]:
    """The columns that fit into `width` cells, by number and in their order, each with its width.

    `natural` holds the cells that each column needs in full. Columns are taken by weight, and those that are `empty`
    only if all others fit. Every column of weight `KEY` is taken, even if the screen is too narrow, and the next column
    if `LEAST` cells are left for it. A column of less weight than `EXTRA` must leave the other texts twice their least
    width. Texts that may be cut share the rest.
    """
    needed = [min(full, layout.least or full) for layout, full in zip(layouts, natural, strict=True)]
    blank = empty or [False] * len(layouts)
    order = sorted(range(len(layouts)), key=lambda at: (layouts[at].weight < KEY and blank[at], -layouts[at].weight))
    chosen: list[int] = []
    left = width + gap
    spare = left  # what is left if the chosen texts get twice their least width
    for place, at in enumerate(order):
        layout = layouts[at]
        if blank[at] and layout.weight < KEY and len(chosen) < place:
            break  # a column with content was dropped
        first = place == 0 or layouts[order[place - 1]].weight >= KEY
        if first and layout.least and LEAST <= left - gap < needed[at]:
            needed[at] = left - gap
        if layout.weight >= KEY or needed[at] + gap <= (left if layout.weight >= EXTRA else spare):
            chosen.append(at)
            left -= needed[at] + gap
            spare -= min(natural[at], 2 * needed[at] if layout.least else needed[at]) + gap
    widths = {at: needed[at] for at in sorted(chosen)}
    # Those that lack the least come first, so that what they leave goes to the others.
    cut = sorted((at for at in widths if natural[at] > needed[at]), key=lambda at: natural[at] - needed[at])
    for place, at in enumerate(cut):
        more = min(natural[at] - needed[at], max(left, 0) // (len(cut) - place))
        widths[at] += more
        left -= more
    return widths


def shorten(text: str, width: int, ellipsis: str = "…", *, path: bool = False) -> str:
    """`text` cut to at most `width` cells, with an ellipsis in place of its end, or of the beginning of a path.

    A number at the cut is left out, because a part of it would look like another number.
    """
    if cells(text) <= width:
        return text
    room = width - len(ellipsis)
    if room < 0:
        return ellipsis[:width]
    if path and "/" in text:
        return ellipsis + _beginning(text[::-1], room)[::-1]
    part = _beginning(text, room)
    if text[len(part)].isdigit():
        part = part.rstrip("0123456789") or part
    return part + ellipsis


def _beginning(text: str, room: int) -> str:
    """As much of `text` as `room` cells hold."""
    if text.isascii():
        return text[:room]
    for at, character in enumerate(text):
        room -= cells(character)
        if room < 0:
            return text[:at]
    return text


def cells(text: str) -> int:
    """The number of cells that `text`, one line of printable characters, takes on a terminal."""
    return len(text) if text.isascii() else sum(map(_cells_of, text))


@lru_cache(4096)
def _cells_of(character: str) -> int:
    if unicodedata.category(character) in {"Mn", "Me", "Cf"}:  # marks on the character before it, and joiners
        return 0
    return 2 if unicodedata.east_asian_width(character) in {"W", "F"} else 1


def screen_width() -> int:
    """The cells in a line of the terminal; the variable COLUMNS counts before the terminal."""
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given):
        return int(given)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or WIDTH
    except (OSError, ValueError):
        return WIDTH


def _cell(cell: object, layout: Layout, most: int | None) -> str:
    text = str(cell)
    if most is not None and len(text) > most and layout.weight < KEY:
        text = text[-most:] if layout.path and "/" in text else text[:most]
    return printable_line(text)


def _is_numeric(column: Sequence[object]) -> bool:
    """Whether all cells are numbers or empty, so that they are aligned at the right."""
    return any(cell != "" for cell in column) and all(isinstance(cell, int | float) or cell == "" for cell in column)
