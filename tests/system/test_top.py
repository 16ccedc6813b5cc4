"""`llmos top` on a screen of 80 by 24 cells: its layout, its question before a kill, its keys, its filter and tree."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from textual.binding import Binding
from textual.pilot import Pilot
from textual.widgets import DataTable

from ipc.errors import NoDaemon, UnknownProcess
from ipc.syscalls import ProcessInfo, SlotInfo, Stats, Usage
from llmosd.cli import top as top_module
from llmosd.cli.table import cells
from llmosd.cli.top import KEYS, MOST_ROWS, Top
from tests.support.daemon import SCRIPTS, RunningDaemon
from tests.support.terminal import Typist

MACHINE = {"memory_available": 8e9, "memory_total": 16e9, "cpu": 0.5, "cores": 8.0}


def process(pid: int, tokens: int = 0, **fields: object) -> ProcessInfo:
    """A row of the process table. Its rate of tokens grows with `tokens`."""
    row = ProcessInfo(pid, 0, "ask", "me", 0, "blocked", "", 1, 0, 1.0, Usage(generated_tokens=tokens))
    return msgspec.structs.replace(row, **fields)


class FakeDaemon:
    """Stands in for the client of `top`, and for the daemon behind it. Each poll makes new tokens by `rates`."""

    def __init__(self) -> None:
        self.rows: dict[int, ProcessInfo] = {}
        self.rates: dict[int, int] = {}
        self.slot_rows: list[SlotInfo] = []
        self.killed: list[int] = []
        self.refusal: Exception | None = None  # of the next poll
        self.late: asyncio.Event | None = None  # set when the answer of a poll arrives

    def add(self, *rows: ProcessInfo) -> None:
        self.rows |= {row.pid: row for row in rows}

    async def connect(self) -> None: ...

    async def close(self) -> None: ...

    async def ps(self) -> list[ProcessInfo]:
        if self.refusal is not None:
            raise self.refusal
        for pid, rate in self.rates.items():
            row = self.rows[pid]
            usage = msgspec.structs.replace(row.usage, generated_tokens=row.usage.generated_tokens + rate)
            self.rows[pid] = msgspec.structs.replace(row, usage=usage)
        rows = list(self.rows.values())
        if self.late is not None:
            await self.late.wait()
        return rows

    async def stats(self) -> Stats:
        hints = msgspec.inspect.type_info(Stats)
        assert isinstance(hints, msgspec.inspect.StructType)
        empty = {msgspec.inspect.StrType: "0.1.0", msgspec.inspect.DictType: {}, msgspec.inspect.ListType: []}
        values = {field.name: empty.get(type(field.type), 1) for field in hints.fields}
        return Stats(**(values | {"machine": MACHINE}))

    async def slots(self) -> list[SlotInfo]:
        return self.slot_rows

    async def suspend(self, pid: int) -> None:
        self.rows[pid] = msgspec.structs.replace(self.rows[pid], state="suspended")

    async def resume(self, pid: int) -> None: ...

    async def kill(self, pid: int) -> None:
        if self.rows.pop(pid, None) is None:
            raise UnknownProcess(f"no living process {pid}")
        self.killed.append(pid)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeDaemon:
    fake = FakeDaemon()
    monkeypatch.setattr(top_module, "AsyncClient", lambda socket, name: fake)
    return fake


def screen(top: Top) -> list[str]:
    """The lines on the screen."""
    return [strip.text for strip in top.screen._compositor.render_strips()]


def column(top: Top, name: str) -> list[str]:
    return [str(cell) for cell in top._table.get_column(name)]


def titles(top: Top) -> list[str]:
    return [str(one.label) for one in top._table.ordered_columns]


async def drawn(pilot: Pilot[None]) -> None:
    """Poll, and wait until the screen shows the result."""
    assert isinstance(pilot.app, Top)
    await pilot.app.poll()
    await pilot.pause()


async def appears(pilot: Pilot[None], text: str) -> str:
    """Wait until `text` is on the screen; return its line."""
    assert isinstance(pilot.app, Top)
    for _ in range(1000):
        for line in screen(pilot.app):
            if text in line:
                return line
        await pilot.pause()
    raise AssertionError(f"the screen never showed {text!r}:\n" + "\n".join(screen(pilot.app)))


async def test_a_key_shows_its_effect_though_a_poll_was_under_way(fake: FakeDaemon) -> None:
    fake.add(process(2))
    top = Top(Path("socket"))
    async with top.run_test() as pilot:
        await drawn(pilot)
        fake.late = asyncio.Event()
        earlier = asyncio.create_task(top.poll())
        await asyncio.sleep(0)
        pressing = asyncio.create_task(pilot.press("s"))
        while fake.rows[2].state != "suspended":
            await asyncio.sleep(0)
        fake.late.set()
        await asyncio.gather(earlier, pressing)
        assert column(top, "STATE") == ["suspended"]


async def closed(pilot: Pilot[None]) -> None:
    """Wait until no window is open over the table."""
    for _ in range(1000):
        if len(pilot.app.screen_stack) == 1:
            return
        await pilot.pause()
    raise AssertionError("a window stays open")


async def test_everything_is_visible_at_80_cells(fake: FakeDaemon) -> None:
    fake.add(
        process(
            123456789, program="/home/ann/agents/researcher.py", state="generating", waits_for="12345 tokens so far"
        ),
        *(process(pid, waits_for="the reply of process 123456789") for pid in range(1, 40)),
    )
    fake.slot_rows = [
        SlotInfo(f"a model with a long name, number {n}", "ready", "", 1, 4, 4, 12, 9, 98.5, 4, 0, 300_000_000, [])
        for n in range(9)
    ]
    top = Top(Path("unused"))
    async with top.run_test(size=(80, 24)) as pilot:
        await drawn(pilot)
        await appears(pilot, "t Tree")
        assert titles(top)[:2] == ["PID", "PROGRAM"]
        assert {"STATE", "WAITS FOR", "CPU%", "TOK/S ▼"} <= set(titles(top))
        assert (top._table.max_scroll_x, top._table.virtual_size.width <= 80) == (0, True)
        lines = screen(top)
        assert {cells(line) for line in lines} == {80}
        assert all(title in next(line for line in lines if " PID " in line) for title in titles(top))
        assert "123456789" in column(top, "PID")
        for key in ("q Quit", "? Help", "k Kill", "s Suspend", "+/- Priority", "</> Sort", "/ Filter", "t Tree"):
            assert f" {key} " in lines[-1]
        assert sum("model a model" in line for line in lines) == 4
        assert any("and 5 more models" in line for line in lines)


async def test_the_summary_is_complete_at_80_cells(fake: FakeDaemon) -> None:
    states = ("blocked", "generating", "loading", "new", "queued", "ready", "suspended")
    fake.add(*(process(pid, state=state) for pid, state in enumerate(states, 1)))
    fake.slot_rows = [SlotInfo(f"m{n}", "ready", "", 1, 4, 4, 12, 9, 98.5, 4, 0, 300_000_000, []) for n in range(5)]
    top = Top(Path("unused"))
    async with top.run_test(size=(80, 24)) as pilot:
        await drawn(pilot)
        await appears(pilot, "1 process: blocked 1, generating 1, loading 1, new 1, queued 1, ready 1,")
        assert (await appears(pilot, "suspended 1")).strip() == "suspended 1"
        await appears(pilot, "and 1 more model: see `llmos slots`")
        assert "…" not in "\n".join(screen(top))


async def test_a_new_width_gets_the_columns_that_fit(fake: FakeDaemon) -> None:
    fake.add(process(123456789, waits_for="a text that is longer than its column"))
    top = Top(Path("unused"))
    async with top.run_test(size=(80, 24)) as pilot:
        for width in (20, 40, 120, 60):
            await pilot.resize_terminal(width, 24)
            await drawn(pilot)
            assert top._table.virtual_size.width <= width
            assert column(top, "PID") == ["123456789"]
            assert ("BOX" in titles(top)) is (width == 120)


async def test_wide_shows_all_columns(fake: FakeDaemon) -> None:
    fake.add(process(1, waits_for="a text that is much longer than its column on any narrow screen"))
    top = Top(Path("unused"), wide=True)
    async with top.run_test(size=(80, 24)) as pilot:
        await drawn(pilot)
        assert len(titles(top)) == 13
        assert column(top, "WAITS FOR")[0].endswith("narrow screen")
        await pilot.press("w")
        assert len(titles(top)) < 13


async def test_the_fastest_process_comes_first(fake: FakeDaemon) -> None:
    fake.add(process(1), process(2), process(3))
    fake.rates = {1: 10, 2: 1000, 3: 100}
    top = Top(Path("unused"))
    async with top.run_test(size=(80, 24)) as pilot:
        await drawn(pilot)
        assert column(top, "PID") == ["2", "3", "1"]
        await pilot.press("r")
        assert column(top, "PID") == ["1", "3", "2"]


async def test_the_cursor_stays_on_the_first_row_until_the_user_moves_it(fake: FakeDaemon) -> None:
    fake.add(*(process(pid) for pid in range(1, 41)))
    top = Top(Path("unused"))
    async with top.run_test(size=(80, 24)) as pilot:
        await drawn(pilot)
        fake.rates = dict.fromkeys(range(2, 41), 10)
        await drawn(pilot)
        assert (top._selected(), top._table.scroll_offset.y) == (2, 0)
        await pilot.press("down")
        assert top._selected() == 3
        fake.rates = {1: 10, 40: 10}
        await drawn(pilot)
        assert (column(top, "PID")[:2], top._selected()) == (["1", "40"], 3)
        await pilot.press("ctrl+home")
        fake.rates = {7: 10}
        await drawn(pilot)
        assert top._selected() == 7


async def test_a_daemon_that_does_not_answer_ends_it_with_a_sentence(fake: FakeDaemon) -> None:
    top = Top(Path("unused"))
    async with top.run_test(size=(80, 24)) as pilot:
        fake.refusal = NoDaemon("the daemon did not answer within 30 s")
        await drawn(pilot)
    assert (top.return_code, top.is_running) == (3, False)


async def test_ctrl_c_quits(fake: FakeDaemon) -> None:
    top = Top(Path("unused"))
    async with top.run_test(size=(80, 24)) as pilot:
        await drawn(pilot)
        await pilot.press("ctrl+c")
    assert top.return_code == 0


async def test_any_key_but_y_lets_the_process_live(fake: FakeDaemon) -> None:
    fake.add(process(1), process(2))
    top = Top(Path("unused"))
    async with top.run_test(size=(80, 24)) as pilot:
        await drawn(pilot)
        for key in ("n", "enter", "escape", "q", "k", "down", "ctrl+c"):
            await pilot.press("k")
            await appears(pilot, "kill 1 ask? y/n")
            await pilot.press(key)
            await closed(pilot)
            await appears(pilot, "process 1 was not killed")
            assert (fake.killed, column(top, "PID")) == ([], ["1", "2"])
            assert top.is_running


async def test_the_question_is_about_one_process_whatever_moves_meanwhile(fake: FakeDaemon) -> None:
    fake.add(process(1), process(2), process(3))
    top = Top(Path("unused"))
    async with top.run_test(size=(80, 24)) as pilot:
        await drawn(pilot)
        await pilot.press("down", "k")
        fake.rates = {3: 1000}
        await drawn(pilot)
        await drawn(pilot)
        await pilot.press("y")
        await appears(pilot, "process 2 killed")
        assert (fake.killed, column(top, "PID")) == ([2], ["3", "1"])
        await pilot.press("k")
        chosen = (await appears(pilot, "y/n")).split()[2]
        fake.rates = {}
        del fake.rows[int(chosen)]  # it ends while the question is open
        await drawn(pilot)
        await pilot.press("y")
        await appears(pilot, f"no living process {chosen}")
        assert fake.killed == [2]


async def test_the_question_mark_shows_all_keys(fake: FakeDaemon) -> None:
    top = Top(Path("unused"))
    async with top.run_test(size=(80, 24)) as pilot:
        await pilot.press("question_mark")
        await appears(pilot, "any key closes this list")
        text = "\n".join(screen(top))
        assert [effect for _, effect in KEYS if effect not in text] == []
        keys = " ".join(key for key, _ in KEYS)
        assert [
            one for one in top.BINDINGS if isinstance(one, Binding) and (one.key_display or "q")[0] not in keys
        ] == []
        await pilot.press("q")
        await closed(pilot)
        assert top.is_running
        await pilot.press("k", "s", "plus")  # nothing is chosen
        assert len(top.screen_stack) == 1


async def test_the_filter_and_the_tree(fake: FakeDaemon) -> None:
    fake.add(process(1, program="parent"), process(2, program="child", parent=1), process(3, program="other"))
    top = Top(Path("unused"))
    async with top.run_test(size=(80, 24)) as pilot:
        await drawn(pilot)
        await pilot.press("t")
        assert column(top, "PROGRAM") == ["parent", "└─ child", "other"]
        await pilot.press("slash", *"OTHER")
        await drawn(pilot)
        assert column(top, "PID") == ["3"]
        await pilot.press("enter")
        await appears(pilot, "1 process with the text 'OTHER'")
        await pilot.press("slash", *"zzz", "escape")
        assert column(top, "PID") == ["3"]
        await pilot.press("slash", *["backspace"] * 5, "enter", "t")
        assert column(top, "PROGRAM") == ["parent", "child", "other"]


async def test_the_arrow_keys_belong_to_the_window_that_is_open(fake: FakeDaemon) -> None:
    fake.add(process(1))
    top = Top(Path("unused"))
    async with top.run_test(size=(80, 24)) as pilot:
        await drawn(pilot)
        await pilot.press("slash", *"ak", "left", "left", "s", "enter")
        await closed(pilot)
        assert (top._filter, top._sorted_by) == ("sak", "TOK/S")
        await pilot.press("slash", "backspace", "backspace", "backspace", "enter")
        await closed(pilot)
        await pilot.press("k", "left")
        await closed(pilot)
        await appears(pilot, "process 1 was not killed")
        assert top._sorted_by == "TOK/S"


async def test_no_text_of_a_process_controls_the_terminal(fake: FakeDaemon) -> None:
    fake.add(process(1, program="\x1b]0;title\x07", waits_for="a\nb\u202e[red]"))
    top = Top(Path("unused"))
    async with top.run_test(size=(120, 24)) as pilot:
        await drawn(pilot)
        text = "\n".join(screen(top))
        assert r"\x1b]0;title\x07" in text
        assert r"a\nb\u202e[red]" in text
        await pilot.press("k")
        await appears(pilot, r"kill 1 \x1b]0;title\x07? y/n")


async def test_no_rows_and_many_rows(fake: FakeDaemon) -> None:
    top = Top(Path("unused"))
    async with top.run_test(size=(80, 24)) as pilot:
        await drawn(pilot)
        assert top.query_one(DataTable).row_count == 0
        fake.add(*(process(pid) for pid in range(1, MOST_ROWS + 101)))
        await drawn(pilot)
        assert top.query_one(DataTable).row_count == MOST_ROWS
        assert any(f"showing the first {MOST_ROWS} of {MOST_ROWS + 100} processes" in line for line in screen(top))
        assert top._table.max_scroll_x == 0


def test_the_command_on_a_terminal(daemon: RunningDaemon) -> None:
    command = [SCRIPTS / "llmos", "--socket", daemon.socket, "top"]
    with Typist(command, {"COLUMNS": "", "LINES": ""}) as user:
        while not ("TOK/S" in user.screen and "Tree" in user.screen):  # the header, and the last key of the footer
            user.see("\x1b")
        user.type("q")
        assert user.end() == 0
