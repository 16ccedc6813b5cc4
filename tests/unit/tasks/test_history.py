"""The history of tasks: the arguments, the pid and the result in short form, however long they are."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ipc.codec import encode
from ipc.frames import MAX_FRAME
from ipc.messages import Failed, Result
from ipc.syscalls import Submit
from kernel.journal.journal import Journal
from kernel.journal.settings import JournalSettings
from kernel.journal.store import open_store
from kernel.tasks import short_form, summaries
from llmosd.context import Context
from tests.support.boot import boot
from tests.support.journal_desk import end, task
from tests.support.slow_disk import ended
from tests.support.system import System

LONG = 15 * 1024 * 1024


def arguments(*positional: Any, **named: Any) -> str:
    return short_form.arguments(encode(Submit("ask", named, positional))[: short_form.BEGINNING])


def result(value: Any) -> str:
    return short_form.result(encode(Result(7, value))[: short_form.BEGINNING])[1]


async def returns(ctx: Context, value: Any = None, size: int = 0) -> Any:
    return "x" * size or value


async def fails(ctx: Context) -> None:
    raise ValueError("no")


@pytest.mark.real_time
async def test_a_row_has_the_arguments_the_pid_and_the_result(system: System) -> None:
    program = system.program(returns)
    first = await system.submit(Submit(program, {"value": "line one\nline two"}))
    second = await system.submit(Submit(program, positional=([1, {"a": None}],)))
    third = await system.submit(Submit(system.program(fails)))
    rows = {row.id: row for row in await ended(system, 3)}
    assert [(rows[one.id].last_pid, rows[one.id].pid) for one in (first, second, third)] == [
        (first.pid, 0),
        (second.pid, 0),
        (third.pid, 0),
    ]
    assert [(rows[one.id].arguments, rows[one.id].result) for one in (first, second, third)] == [
        ('value="line one\nline two"', "line one\nline two"),
        ('[1, {"a": null}]', '[1, {"a": null}]'),
        ("", ""),
    ]


@pytest.mark.real_time
async def test_a_task_that_runs_has_its_pid_and_no_result(system: System) -> None:
    go = asyncio.Event()

    async def waits(ctx: Context) -> None:
        await go.wait()

    task = await system.submit(Submit(system.program(waits)))
    (row,) = await system.history()
    assert (row.pid, row.last_pid, row.result) == (task.pid, task.pid, "")
    go.set()
    (row,) = await ended(system, 1)
    assert (row.pid, row.last_pid) == (0, task.pid)


@pytest.mark.real_time
async def test_the_pid_and_the_texts_are_known_in_the_next_run_of_the_daemon(tmp_path: Path) -> None:
    found = []
    for run in range(2):
        system = boot(tmp_path, journal=Journal(tmp_path, JournalSettings()))
        if not run:
            task = await system.submit(Submit(system.program(returns), {"value": 5}))
            await ended(system, 1)
        found += [(row.last_pid, row.arguments, row.result) for row in await system.history()]
        await system.kernel.drain(0)
        await system.kernel.close()
    assert found == [(task.pid, "value=5", "5")] * 2


@pytest.mark.real_time
async def test_long_results_do_not_travel(system: System) -> None:
    program = system.program(returns)
    for _ in range(3):
        await system.submit(Submit(program, {"size": LONG}))
    rows = await ended(system, 3)
    assert {row.result for row in rows} == {"x" * 117 + "..."}
    assert len(encode(rows)) < 2000


def test_a_very_long_list_fits_into_a_frame_and_has_the_texts_of_the_newest_tasks(tmp_path: Path) -> None:
    store = open_store(tmp_path / "journal.sqlite", "off")
    most = 8_000
    with store.transaction():
        accepted = store.accept([task("日" * 200) for _ in range(most)])
        store.finish([end(one.id, outcome=encode(Result(7, "本" * 200))) for one in accepted])  # type: ignore[union-attr]
    found = summaries.read(store, most, None)
    store.close()
    assert len(found) == most
    assert found[0].arguments.startswith('value="日日')
    assert found[0].result.startswith("本本")
    assert (found[-1].arguments, found[-1].result, found[-1].last_pid) == ("", "", 7)
    assert sum(len(one.arguments.encode()) + len(one.result.encode()) for one in found) < MAX_FRAME / 4


def test_arguments_are_those_in_order_and_then_those_by_name() -> None:
    assert arguments() == ""
    assert arguments("Why?", max_tokens=5, letters=["x"]) == '"Why?", max_tokens=5, letters=["x"]'


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ('["the cat", "b"]', """'["the cat", "b"]'"""),
        ('["it\'s"]', """'["it\'s"]'"""),
        ("it's", '''"it's"'''),
        ("C:\\new", '"C:\\new"'),
    ],
)
def test_a_text_is_shown_as_its_user_typed_it(typed: str, shown: str) -> None:
    assert arguments(typed) == shown
    assert arguments(value=typed) == f"value={shown}"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        ("", ""),
        ("plain", "plain"),
        (True, "true"),
        (2.5, "2.5"),
        (["a", 1, None], '["a", 1, null]'),
        ({"a": {"b": [1]}}, '{"a": {"b": [1]}}'),
        (b"abc", "<3 bytes>"),
        (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02 00:00:00+00:00"),
    ],
)
def test_a_result_is_a_text_or_json(value: Any, text: str) -> None:
    assert result(value) == text


@pytest.mark.parametrize(
    ("value", "start"),
    [
        ("long " * 9000, "long long "),
        ("日本" * 9000, "日本日本"),
        ([["a"] * 3] * 9000, '[["a", "a", "a"], ["a", '),
        ({f"name {n}": n * 1e300 for n in range(9000)}, '{"name 0": 0.0, "name 1": 1e+300, '),
        ({"deep": [[[-1, -300, 70_000, 1 << 40, 2.5, True, None, "z" * 9000]]]}, '{"deep": [[[-1, -300, 70000, 109951'),
        ([b"x" * 9000], "[<9000 bytes>"),
    ],
)
def test_the_beginning_of_a_long_value_is_enough(value: Any, start: str) -> None:
    text = result(value)
    assert text.startswith(start)
    assert len(text) <= short_form.MOST
    assert arguments(value=value).startswith("value=")


def test_a_value_nested_too_deeply_is_cut() -> None:
    value: list[Any] = ["z" * 9000]
    for _ in range(200):
        value = [value]
    assert result(value).startswith("[[[[[[")


def test_a_damaged_value_is_no_error() -> None:
    whole = encode(Result(7, {"a": ["b", 1.5, b"c"]}))
    pieces = [whole[:cut] for cut in range(len(whole))] + [
        whole[:at] + b"\xc1" + whole[at:] for at in range(len(whole))
    ]
    for data in (
        *pieces,
        b"\xdf\xff\xff\xff\xff",
        b"\x93\xa6result\x07\xdd\xff\xff\xff\xff",
        *map(os.urandom, range(99)),
    ):
        pid, text = short_form.result(data)
        assert (type(pid), type(text)) == (int, str)
        assert isinstance(short_form.arguments(data), str)
    assert short_form.result(b"\x93\xa6failed\x07\xc0") == (7, "")
    assert short_form.result(encode(Failed(3, None))) == (3, "")  # type: ignore[arg-type]
