"""`llmos top`: shows the processes of the daemon live in full screen, and controls them by keys.

Run by the command `top`; no other command loads the terminal library. It makes a few requests per second over a
separate connection, and never shows more than the first `MOST_ROWS` rows in the current order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic
from typing import Any, ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import DataTable, Footer, Static

from ipc.errors import ConnectionLost, LlmosError, NoDaemon
from ipc.syscalls import ProcessInfo, SlotInfo, Stats
from llmosd.cli import show
from llmosd.client.asynchronous import AsyncClient

INTERVAL = 1.0  # seconds between two polls
MOST_ROWS = 500
NO_DAEMON = 3  # exit code


class TopRow:
    """A process, and its rates since the last poll: the share of a CPU, and generated tokens per second."""

    def __init__(self, info: ProcessInfo, before: ProcessInfo | None, seconds: float) -> None:
        self.info = info
        self.cpu = self.tokens = 0.0
        if before is not None and seconds > 0:
            self.cpu = (info.usage.cpu_seconds - before.usage.cpu_seconds) / seconds
            self.tokens = (info.usage.generated_tokens - before.usage.generated_tokens) / seconds


class Column:
    """A column: `show` returns its text, and `key` its sort key. `down`: the largest values come first."""

    def __init__(
        self, show: Callable[[TopRow], str], key: Callable[[TopRow], Any] | None = None, *, down: bool = False
    ) -> None:
        self.show = show
        self.key = key or show
        self.down = down


COLUMNS = {
    "PID": Column(lambda row: str(row.info.pid), lambda row: row.info.pid),
    "PARENT": Column(lambda row: str(row.info.parent or ""), lambda row: row.info.parent),
    "PROGRAM": Column(lambda row: row.info.program),
    "OWNER": Column(lambda row: row.info.owner),
    "PRI": Column(lambda row: str(row.info.priority), lambda row: row.info.priority, down=True),
    "STATE": Column(lambda row: row.info.state),
    "WAITS FOR": Column(lambda row: row.info.waits_for),
    "CPU%": Column(lambda row: f"{row.cpu:.0%}", lambda row: row.cpu, down=True),
    "TOK/S": Column(lambda row: f"{row.tokens:.1f}", lambda row: row.tokens, down=True),
    "TOKENS": Column(
        lambda row: f"{row.info.usage.prompt_tokens}/{row.info.usage.generated_tokens}",
        lambda row: row.info.usage.prompt_tokens + row.info.usage.generated_tokens,
        down=True,
    ),
    "MSGS": Column(
        lambda row: f"{row.info.usage.messages_received}/{row.info.usage.messages_sent}",
        lambda row: row.info.usage.messages_received + row.info.usage.messages_sent,
        down=True,
    ),
    "BOX": Column(lambda row: str(row.info.mailbox), lambda row: row.info.mailbox, down=True),
    "AGE": Column(lambda row: show.duration(row.info.age), lambda row: row.info.age, down=True),
}
ORDER = list(COLUMNS)


class Top(App[None]):
    """The screen. `run` returns when the user quits, or when the connection is lost."""

    ENABLE_COMMAND_PALETTE = False
    CSS = "#summary { height: auto; padding: 0 1; } #notice { height: auto; padding: 0 1; color: $warning; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit"),
        Binding("k", "kill", "Kill"),
        Binding("s", "suspend", "Suspend/resume"),
        Binding("plus,equals_sign", "nice(1)", "More urgent", key_display="+"),
        Binding("minus", "nice(-1)", "Less urgent", key_display="-"),
        Binding("less_than_sign,left", "sort(-1)", "Sort left", key_display="<", priority=True),
        Binding("greater_than_sign,right", "sort(1)", "Sort right", key_display=">", priority=True),
        Binding("r", "reverse", "Reverse"),
    ]

    def __init__(self, socket: Path) -> None:
        super().__init__()
        self._client = AsyncClient(socket, name="llmos top")
        self._before: dict[int, ProcessInfo] = {}
        self._rows: list[TopRow] = []
        self._polled_at = 0.0
        self._sorted_by = "CPU%"
        self._reversed = False
        self._polling = False

    def compose(self) -> ComposeResult:
        yield Static(id="summary")
        yield DataTable(id="processes", cursor_type="row", zebra_stripes=True)
        yield Static(id="notice")
        yield Footer()

    async def on_mount(self) -> None:
        try:
            await self._client.connect()
        except (NoDaemon, ConnectionLost) as error:
            self._leave(error)
            return
        await self.poll()
        self.set_interval(INTERVAL, self.poll)

    async def on_unmount(self) -> None:
        await self._client.close()

    async def poll(self) -> None:
        """Ask the daemon, and show its answers. Does nothing while an earlier poll waits for the daemon."""
        if self._polling:
            return
        self._polling = True
        try:
            infos, stats, slots = await self._client.ps(), await self._client.stats(), await self._client.slots()
        except ConnectionLost as error:
            self._leave(error)
            return
        finally:
            self._polling = False
        now = monotonic()
        seconds, self._polled_at = now - self._polled_at, now
        self._rows = [TopRow(info, self._before.get(info.pid), seconds) for info in infos]
        self._before = {info.pid: info for info in infos}
        self.query_one("#summary", Static).update(_summary(infos, stats, slots))
        self._draw()

    # ---- keys

    async def action_kill(self) -> None:
        await self._do(self._client.kill, "killed")

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

    async def _do(self, action: Callable[[int], Any], done: str) -> None:
        """Apply `action` to the selected process. Show the text `done`, or the error."""
        pid = self._selected()
        if pid is None:
            return
        try:
            await action(pid)
            text = f"process {pid} {done}"
        except ConnectionLost as error:
            self._leave(error)
            return
        except LlmosError as error:
            text = error.message
        self.query_one("#notice", Static).update(Text(text))
        await self.poll()

    def _selected(self) -> int | None:
        table = self.query_one(DataTable)
        if not table.is_valid_row_index(table.cursor_row):
            return None
        return int(str(table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value))

    def _draw(self) -> None:
        """Show the rows in order, and leave the cursor on the process on which it was."""
        table = self.query_one(DataTable)
        pid, place = self._selected(), table.cursor_row
        column = COLUMNS[self._sorted_by]
        rows = sorted(self._rows, key=column.key, reverse=column.down != self._reversed)[:MOST_ROWS]
        table.clear(columns=True)
        for name in ORDER:
            arrow = (" ▲" if column.down == self._reversed else " ▼") if name == self._sorted_by else ""
            table.add_column(name + arrow, key=name)
        for row in rows:
            table.add_row(*(Text(cell.show(row)) for cell in COLUMNS.values()), key=str(row.info.pid))
        if rows:
            pids = [row.info.pid for row in rows]
            at = pids.index(pid) if pid in pids else min(place, len(rows) - 1)
            table.move_cursor(row=at, animate=False)

    def _leave(self, error: LlmosError) -> None:
        self.exit(return_code=NO_DAEMON, message=f"llmos: {type(error).__name__}: {error.message}")


def _summary(infos: Sequence[ProcessInfo], stats: Stats, slots: Sequence[SlotInfo]) -> Text:
    states: dict[str, int] = {}
    for info in infos:
        states[info.state] = states.get(info.state, 0) + 1
    machine = stats.machine
    free, total = show.size(machine["memory_available"]), show.size(machine["memory_total"])
    lines = [
        f"llmosd {stats.version}  up {show.duration(stats.uptime)}  {stats.processes} processes: {show.counts(states)}"
        f"  dead letters: {stats.dead_letters}",
        f"daemon: {show.size(stats.memory)}, {show.duration(stats.cpu_seconds)} cpu  "
        f"machine: {machine['cpu']:.0%} of {machine['cores']:.0f} cores, {free} free of {total}",
    ]
    lines += [
        f"model {row.model}: {row.state}  {row.used}/{row.slots} slots, {row.queued} queued, "
        f"{row.tokens_per_second:.1f} tokens/s, {show.size(row.memory)}"
        for row in slots
    ]
    if stats.unwritten:
        lines.append(f"{stats.unwritten} tasks have ended, but their results are not on disk yet")
    if len(infos) > MOST_ROWS:
        lines.append(f"showing the first {MOST_ROWS} of {len(infos)} processes")
    return Text("\n".join(lines))
