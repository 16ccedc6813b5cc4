"""`llmos top`: shows the processes of the daemon live in full screen, and controls them by keys.

Run by the command `top`; no other command loads the terminal library. It makes a few requests per second over a
separate connection, and never shows more than the first `MOST_ROWS` rows in the current order.
"""

from __future__ import annotations

import asyncio
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import monotonic
from typing import Any, ClassVar

from rich.text import Text
from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import DataTable, Footer, Static

from ipc.errors import ConnectionLost, LlmosError, NoDaemon
from ipc.syscalls import ProcessInfo, SlotInfo, Stats
from llmosd.cli import show
from llmosd.cli.listings import branches
from llmosd.cli.table import shorten
from llmosd.cli.top_columns import COLUMNS, ORDER, TopRow, text_of, visible
from llmosd.cli.top_screens import FilterLine, KeyList, Question
from llmosd.client.asynchronous import AsyncClient
from llmosd.printable import printable_line

INTERVAL = 1.0  # seconds between two polls
MOST_ROWS = 500
MOST_MODELS = 4  # lines of models above the table
WRAPS = 60  # cells from which on a long line above the table continues in a second row
NO_DAEMON = 3  # exit code
SCROLLBAR = 1  # cells at the right of the table

KEYS = [
    ("q, ctrl+c", "quit"),
    ("?", "show this list"),
    ("up, down, pageup, pagedown", "choose a process"),
    ("k", "kill the chosen process, after a question"),
    ("s", "suspend it, or resume it"),
    ("+, -", "make it more urgent, or less"),
    ("<, >, left, right", "sort by the column to the left, or to the right"),
    ("r", "reverse the order"),
    ("/", "show only rows with a text"),
    ("t", "children under their parents, or a plain list"),
    ("w", "all columns, or those that fit"),
    ("ctrl+pageup, ctrl+pagedown", "scroll to the left, or to the right"),
]


class Top(App[None]):
    """The screen. `run` returns when the user quits, or when the connection is lost."""

    ENABLE_COMMAND_PALETTE = False
    CSS = f"""
        #summary {{ height: auto; padding: 0 1; }}
        #notice {{ height: auto; padding: 0 1; color: $warning; }}
        #processes {{ scrollbar-size-vertical: {SCROLLBAR}; height: 1fr; }}
    """
    # The footer shows these, those with priority first. All must fit 80 cells.
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit"),
        Binding("ctrl+c", "quit", show=False),
        Binding("question_mark", "keys", "Help", key_display="?"),
        Binding("k", "kill", "Kill"),
        Binding("s", "suspend", "Suspend"),
        Binding("plus,equals_sign", "nice(1)", "Priority", key_display="+/-"),
        Binding("minus", "nice(-1)", show=False),
        Binding("less_than_sign,left", "sort(-1)", "Sort", key_display="</>", priority=True),
        Binding("greater_than_sign,right", "sort(1)", show=False, priority=True),
        Binding("r", "reverse", show=False),
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("t", "tree", "Tree"),
        Binding("w", "wide", show=False),
    ]

    def __init__(self, socket: Path, *, wide: bool = False) -> None:
        super().__init__()
        self._client = AsyncClient(socket, name="llmos top")
        self._before: dict[int, ProcessInfo] = {}
        self._rows: list[TopRow] = []
        self._polled_at = 0.0
        self._sorted_by = "TOK/S"
        self._reversed = False
        self._polling = asyncio.Lock()
        self._wide = wide
        self._tree = False
        self._filter = ""
        self._lines: list[str] = []  # of the summary
        self._placed = 0  # the row of the cursor when the table was drawn
        self._moved = False  # whether the user has moved the cursor off the first row, so that it follows a process
        # The windows that open over the table have widgets of their own, so these are not looked up.
        self._summary = Static(id="summary")
        self._table: DataTable[Text] = DataTable(id="processes", cursor_type="row", zebra_stripes=True)
        self._notice = Static(id="notice")

    def compose(self) -> ComposeResult:
        yield self._summary
        yield self._table
        yield self._notice
        yield Footer()

    async def on_mount(self) -> None:
        try:
            await self._client.connect()
        except LlmosError as error:
            self._leave(error)
            return
        await self.poll()
        self.set_interval(INTERVAL, self.poll)

    async def on_unmount(self) -> None:
        await self._client.close()

    async def poll(self) -> None:
        """Ask the daemon, and show its answers. Does nothing while an earlier poll waits for the daemon."""
        if not self._polling.locked():
            await self._poll()

    async def _poll(self) -> None:
        """The same, but after an earlier poll, whose answers may be older than what led to this one."""
        async with self._polling:
            try:
                infos, stats, slots = await self._client.ps(), await self._client.stats(), await self._client.slots()
            except LlmosError as error:
                self._leave(error)
                return
        now = monotonic()
        seconds, self._polled_at = now - self._polled_at, now
        self._rows = [TopRow(info, self._before.get(info.pid), seconds) for info in infos]
        self._before = {info.pid: info for info in infos}
        self._lines = _summary(infos, stats, slots)
        self._draw()

    def on_resize(self, event: events.Resize) -> None:
        self.call_after_refresh(self._draw)

    # ---- keys

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Whether a key of the table has an effect now: not while a window is open, which needs its arrow keys."""
        return action != "sort" or len(self.screen_stack) == 1

    def action_kill(self) -> None:
        """Ask, and kill the process that was chosen when the question appeared."""
        pid = self._selected()
        if pid is None:
            return
        info = self._before.get(pid)
        program = "" if info is None else f" {printable_line(info.program[-self.size.width :])}"

        async def answered(yes: bool | None) -> None:
            if yes:
                await self._do(self._client.kill, "killed", pid)
            else:
                self._notice.update(Text(f"process {pid} was not killed"))

        self.push_screen(Question(f"kill {pid}{program}? y/n"), answered)

    def action_keys(self) -> None:
        self.push_screen(KeyList(KEYS))

    def action_filter(self) -> None:
        def changed(text: str) -> None:
            self._filter = text
            self._draw()

        self.push_screen(FilterLine(self._filter, changed))

    def action_tree(self) -> None:
        self._tree = not self._tree
        self._draw()

    def action_wide(self) -> None:
        self._wide = not self._wide
        self._draw()

    async def action_suspend(self) -> None:
        info = self._before.get(self._selected() or 0)
        if info is not None and info.state == "suspended":
            await self._do(self._client.resume, "resumed")
        else:
            await self._do(self._client.suspend, "suspended")

    async def action_nice(self, by: int) -> None:
        await self._do(lambda pid: self._client.nice(pid, by, relative=True), "has a new priority")

    def action_sort(self, step: int) -> None:
        self._sorted_by = ORDER[(ORDER.index(self._sorted_by) + step) % len(ORDER)]
        self._draw()

    def action_reverse(self) -> None:
        self._reversed = not self._reversed
        self._draw()

    def on_data_table_header_selected(self, event: DataTable.HeaderSelected) -> None:
        name = str(event.column_key.value)
        self._reversed = not self._reversed if name == self._sorted_by else False
        self._sorted_by = name
        self._draw()

    # ---- inside

    async def _do(self, action: Callable[[int], Any], done: str, pid: int | None = None) -> None:
        """Apply `action` to the process `pid`, or to the chosen one. Show the text `done`, or the error."""
        pid = self._selected() if pid is None else pid
        if pid is None:
            return
        try:
            await action(pid)
            text = f"process {pid} {done}"
        except (NoDaemon, ConnectionLost) as error:
            self._leave(error)
            return
        except LlmosError as error:
            text = printable_line(error.message)
        self._notice.update(Text(text))
        await self._poll()

    def _selected(self) -> int | None:
        table = self._table
        if not table.is_valid_row_index(table.cursor_row):
            return None
        return int(str(table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value))

    def _ordered(self) -> list[TopRow]:
        """The rows that the filter leaves, in the present order."""
        column = COLUMNS[self._sorted_by]
        found = [row for row in self._rows if not self._filter or row.matches(self._filter)]
        found.sort(key=column.key, reverse=column.down != self._reversed)
        for row in found:
            row.branch = ""
        if self._tree:
            by_pid = {row.info.pid: row for row in found}
            found = []
            for branch, info in branches([row.info for row in by_pid.values()]):
                by_pid[info.pid].branch = branch
                found.append(by_pid[info.pid])
        return found

    def _draw(self) -> None:
        """Show the rows in order, with the cursor on its process, or on the first row until the user moves it."""
        table = self._table
        if not table.is_mounted:
            return
        pid, place = self._selected(), table.cursor_row
        if place != self._placed:
            self._moved = place > 0
        found = self._ordered()
        rows = found[:MOST_ROWS]
        padding = 2 * table.cell_padding
        width = None if self._wide else max(self.size.width - SCROLLBAR - padding, 1)
        arrow = " ▲" if COLUMNS[self._sorted_by].down == self._reversed else " ▼"
        titles = {name: name + arrow * (name == self._sorted_by) for name in ORDER}
        chosen = visible(rows, list(titles.values()), self._sorted_by, width)
        table.clear(columns=True)
        for name, most in chosen.items():
            table.add_column(_cell(titles[name], COLUMNS[name].is_number), key=name, width=most)
        for row in rows:
            shown = ((COLUMNS[name], most) for name, most in chosen.items())
            texts = (
                _cell(
                    shorten(text_of(column, row, width), most, path=column.layout.path and not row.branch),
                    column.is_number,
                )
                for column, most in shown
            )
            table.add_row(*texts, key=str(row.info.pid))
        self._placed = 0
        if rows:
            pids = [row.info.pid for row in rows]
            at = pids.index(pid) if pid in pids else min(place, len(rows) - 1)
            at = at if self._moved else 0
            table.move_cursor(row=at, animate=False)
            self._placed = at
        lines = self._lines[:]
        if self._filter:
            matching = _counted(len(found), "process", "processes")
            lines.append(f"{matching} with the text {printable_line(self._filter)!r}; / changes it")
        if len(found) > MOST_ROWS:
            lines.append(f"showing the first {MOST_ROWS} of {len(found)} processes")
        self._summary.update(Text("\n".join(_wrapped(lines, max(self.size.width - 2, 1)))))

    def _leave(self, error: LlmosError) -> None:
        self.exit(return_code=NO_DAEMON, message=f"llmos: {type(error).__name__}: {printable_line(error.message)}")


def _cell(text: str, is_number: bool) -> Text:
    return Text(text, justify="right" if is_number else "left", no_wrap=True, overflow="crop")


def _wrapped(lines: Sequence[str], width: int) -> Iterator[str]:
    """`lines` in at most two rows each of `width` cells, on a narrow screen in one."""
    for line in lines:
        first, *rest = textwrap.wrap(line, width) if width >= WRAPS and line.isascii() else [line]
        yield shorten(first, width)
        if rest:
            yield shorten(" ".join(rest), width)


def _counted(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"


def _summary(infos: Sequence[ProcessInfo], stats: Stats, slots: Sequence[SlotInfo]) -> list[str]:
    """The lines above the table: the daemon, the machine, and the models in use."""
    states: dict[str, int] = {}
    for info in infos:
        states[info.state] = states.get(info.state, 0) + 1
    machine = stats.machine
    free, total = show.size(machine["memory_available"]), show.size(machine["memory_total"])
    lines = [
        f"llmosd {stats.version}  up {show.duration(stats.uptime)}  {show.size(stats.memory)}, "
        f"{show.duration(stats.cpu_seconds)} cpu  dead letters: {stats.dead_letters}",
        f"machine: {machine['cpu']:.0%} of {machine['cores']:.0f} cores, {free} free of {total}",
        f"{_counted(stats.processes, 'process', 'processes')}: {show.counts(states)}",
    ]
    lines += [
        f"model {printable_line(row.model)}: {row.state}  {row.used}/{row.slots} slots, {row.queued} queued, "
        f"{row.tokens_per_second:.1f} tokens/s, {show.size(row.memory)}"
        for row in slots[:MOST_MODELS]
    ]
    if len(slots) > MOST_MODELS:
        more = _counted(len(slots) - MOST_MODELS, "more model", "more models")
        lines.append(f"and {more}: see `llmos slots`")
    if stats.unwritten:
        ended = _counted(
            stats.unwritten, "task has ended, but its result is", "tasks have ended, but their results are"
        )
        lines.append(f"{ended} not on disk yet")
    return lines
