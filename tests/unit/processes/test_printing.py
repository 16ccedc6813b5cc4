"""Printed text and records of logging go to the log of the process that made them, bounded, whole lines in order."""

from __future__ import annotations

import asyncio
import contextvars
import io
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
from structlog.testing import CapturingLogger

from ipc.messages import Log
from ipc.syscalls import Crashes, Logs
from kernel.core.process import LOG_LINES, Process
from kernel.core.stream import MAX_LINES
from kernel.processes import printing as limits
from kernel.processes import stdio
from llmosd.context import Context
from tests.support.system import System
from tests.support.tool_bench import Bench


@pytest.fixture
def echo() -> Iterator[list[dict[str, Any]]]:
    """The lines of the daemon's log, as dictionaries."""
    lines: list[dict[str, Any]] = []
    before = structlog.get_config()

    def capture(logger: object, method: str, event: Any) -> Any:
        lines.append(dict(event))
        raise structlog.DropEvent

    structlog.configure(
        processors=[structlog.processors.add_log_level, capture], logger_factory=lambda *_: CapturingLogger()
    )
    yield lines
    structlog.configure(**before)


@pytest.fixture
def printing(system: System, echo: list[dict[str, Any]]) -> Iterator[limits.Printing]:
    undo: list[Callable[[], None]] = []
    # In the first turn of the test: pytest sets its own streams between the fixtures and the test.
    system.loop.call_soon(lambda: undo.append(stdio.install(system.kernel.printing)))
    yield system.kernel.printing
    undo[0]()


@pytest.fixture
def bench(system: System) -> Bench:
    return Bench(system)


pytestmark = pytest.mark.usefixtures("printing")


def lines(process: Process) -> list[tuple[str, str]]:
    return [(line.level, line.event) for line in process.log or ()]


async def printed(system: System, function: Callable[[], object]) -> list[tuple[str, str]]:
    """The log of an agent that calls `function`."""

    async def agent(ctx: Context) -> None:
        function()

    process = system.spawn(agent)
    await system.result(process)
    return lines(process)


# ---- from the loop


async def test_printed_lines_go_to_the_log_of_the_process_and_to_its_client(system: System) -> None:
    async def agent(ctx: Context) -> None:
        print("to", "the", "client")
        print("an error", file=sys.stderr)

    recorder = system.recorder()
    process = system.spawn(agent, stream=recorder.stream)
    await system.result(process)
    assert lines(process) == [("stdout", "to the client"), ("stderr", "an error")]
    assert [(line.pid, line.event) for line in recorder.of(Log)] == [
        (process.pid, "to the client"),
        (process.pid, "an error"),
    ]


async def test_a_client_that_reads_later_gets_all_printed_lines_in_few_events(system: System) -> None:
    async def agent(ctx: Context) -> None:
        for n in range(1_000):
            print("line", n)
        print("an error", file=sys.stderr)
        ctx.log("logged")
        print("end", end="")

    recorder = system.recorder(credit=0)
    process = system.spawn(agent, stream=recorder.stream)
    await system.result(process)
    recorder.stream.grant(1_000)
    events = recorder.of(Log)
    text = "\n".join(line.event for line in events)
    assert text.splitlines() == [*(f"line {n}" for n in range(1_000)), "an error", "logged", "end"]
    assert len(events) < 10
    assert max(len(line.event) for line in events) <= MAX_LINES
    assert [line.level for line in events[-4:]] == ["stdout", "stderr", "info", "stdout"]


async def test_two_processes_that_print_in_turns_get_their_own_lines(system: System) -> None:
    async def speaker(ctx: Context, name: str) -> None:
        for n in range(3):
            print(f"{name}", end=" ")
            await asyncio.sleep(0)
            print(n)

    one, two = system.spawn(speaker, "one"), system.spawn(speaker, "two")
    await system.result(one)
    await system.result(two)
    assert lines(one) == [("stdout", f"one {n}") for n in range(3)]
    assert lines(two) == [("stdout", f"two {n}") for n in range(3)]


async def test_threads_and_callbacks_of_an_agent_print_for_its_process(system: System) -> None:
    async def worker() -> None:
        print("a task")

    async def agent(ctx: Context) -> None:
        asyncio.get_running_loop().call_soon(print, "a callback")
        await asyncio.create_task(worker())
        await ctx.start_thread(worker())
        await ctx.sleep(0.1)

    process = system.spawn(agent)
    await system.result(process)
    assert sorted(lines(process)) == [("stdout", "a callback"), ("stdout", "a task"), ("stdout", "a task")]


async def test_a_line_without_its_newline_is_written_at_a_flush_and_at_the_end_of_its_process(system: System) -> None:
    async def agent(ctx: Context) -> None:
        print("flushed", end="", flush=True)
        assert lines(process) == [("stdout", "flushed")]
        print("last words", end="")
        raise ValueError

    recorder = system.recorder()
    process = system.spawn(agent, stream=recorder.stream)
    status = await system.status(process)
    assert status.reason == "failed"
    assert [line.event for line in recorder.of(Log)] == ["flushed", "last words"]
    (report,) = await system.call(Crashes(process.pid))
    assert report.log[-1].event == "last words"


async def test_a_progress_bar_is_one_line(system: System) -> None:
    def progress() -> None:
        for n in range(101):
            print(f"\r{n} %", end="", flush=True)
        print()
        for n in range(101):
            print(f"{n} of 100\r", end="", flush=True)
        print("\nwindows\r\nend\r")

    assert await printed(system, progress) == [
        ("stdout", "100 %"),
        ("stdout", "100 of 100"),
        ("stdout", "windows"),
        ("stdout", "end"),
    ]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("half \ud83d", "half \\ud83d"),
        ("\x00\x1b[31m", "\x00\x1b[31m"),
        ("", ""),
        ("x" * 50_000_000, f"{'x' * limits.MAX_LINE}… ({50_000_000 - limits.MAX_LINE} more characters)"),
    ],
    ids=["half a surrogate", "control characters", "empty", "50 MB"],
)
async def test_any_text_becomes_a_line_that_can_be_encoded_and_is_bounded(
    system: System, text: str, shown: str
) -> None:
    assert await printed(system, lambda: print(text)) == [("stdout", shown)]


async def test_pieces_without_a_newline_are_bounded_too(system: System) -> None:
    def pieces() -> None:
        for _ in range(1_000):
            sys.stdout.write("y" * 1_000)

    ((_, line),) = await printed(system, pieces)
    assert line.startswith("y" * limits.MAX_LINE + "… (")
    assert len(line) < limits.MAX_LINE + 100


async def test_a_text_of_very_many_lines_reports_how_many_it_leaves_out(system: System) -> None:
    async def agent(ctx: Context) -> None:
        sys.stdout.write("line\n" * 2_000_000 + "the rest")

    process = system.spawn(agent)
    await system.result(process)
    assert process.log is not None
    assert len(process.log) == LOG_LINES
    omission, rest = list(process.log)[-2:]
    assert omission.fields == {"lines": 2_000_000 - limits.MAX_LINES_PER_WRITE}
    assert rest.event == "the rest"


async def test_the_streams_look_like_those_of_a_program_in_a_pipe(system: System) -> None:
    def inspect() -> None:
        for stream in (sys.stdout, sys.stderr):
            assert isinstance(stream, io.TextIOBase)
            assert stream.isatty() is False
            assert stream.encoding == "utf-8"
            assert stream.writable()
            assert not stream.readable()
            stream.reconfigure(line_buffering=True)
            stream.close()
            assert not stream.closed
            with pytest.raises(TypeError):
                stream.write(b"bytes")
        sys.stdout.writelines(["two\n", "lines\n"])
        sys.stdout.buffer.write(b"bytes \xff\n")

    assert await printed(system, inspect) == [("stdout", "two"), ("stdout", "lines"), ("stdout", "bytes \\xff")]


async def test_the_log_of_the_daemon_names_the_process_behind_each_line(
    system: System, echo: list[dict[str, Any]]
) -> None:
    async def agent(ctx: Context) -> None:
        print("hello")
        logging.getLogger("library").error("broken")

    process = system.spawn(agent)
    await system.result(process)
    shown = [line for line in echo if line["event"] in {"hello", "broken"}]
    assert shown == [
        {"event": "hello", "level": "info", "pid": process.pid, "program": "agent", "output": "stdout"},
        {"event": "broken", "level": "error", "pid": process.pid, "program": "agent", "logger": "library"},
    ]


async def test_text_that_is_printed_while_a_file_is_loaded_names_the_file(
    system: System, echo: list[dict[str, Any]], tmp_path: Any
) -> None:
    path = tmp_path / "talkative.py"
    path.write_text("import llmosd\nprint('loaded', end='')\n@llmosd.agent\nasync def talkative(ctx): ...\n")
    loading = contextvars.copy_context()
    await system.thread(asyncio.to_thread(loading.run, system.programs.load, str(path)))
    await system.until(lambda: any(line["event"] == "loaded" for line in echo))
    (line,) = [line for line in echo if line["event"] == "loaded"]
    assert line["file"] == str(path)
    assert "pid" not in line


async def test_the_daemon_repeats_only_so_many_lines_and_says_how_many_it_left_out(
    system: System, echo: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(system.kernel.printing, "_clock", lambda: now[0])
    monkeypatch.setattr(system.kernel.printing, "_allowed_at", 0.0)

    async def flood(ctx: Context) -> None:
        for n in range(5_000):
            print(n)
        now[0] += 2.0
        print("later")

    await system.run(flood)
    repeated = [line for line in echo if line.get("output") == "stdout"]
    assert len(repeated) == limits.ECHO_BURST + 1
    assert repeated[-1]["event"] == "later"
    (omission,) = [line for line in echo if "left out here" in line["event"]]
    assert omission["lines"] == 5_000 - limits.ECHO_BURST


async def test_a_log_of_the_daemon_on_the_replaced_stream_does_not_recurse(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = io.StringIO()
    monkeypatch.setattr(sys.stdout, "_original", original)
    structlog.configure(
        processors=[structlog.processors.add_log_level, structlog.processors.KeyValueRenderer()],
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
        wrapper_class=structlog.make_filtering_bound_logger(20),
    )
    assert await printed(system, lambda: print("once")) == [("stdout", "once")]
    assert original.getvalue().count("event='once'") == 1


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("I/O operation on closed file")])
async def test_an_agent_can_print_although_the_log_of_the_daemon_cannot_be_written(
    system: System, error: Exception
) -> None:
    def fail(*_: object) -> Any:
        raise error

    async def agent(ctx: Context) -> None:
        structlog.configure(processors=[fail])
        print("anyway")
        structlog.configure(processors=[lambda *_: ""])

    process = system.spawn(agent)
    await system.result(process)
    assert lines(process) == [("stdout", "anyway")]


# ---- logging and warnings


async def test_records_of_logging_keep_their_level_logger_and_traceback(system: System) -> None:
    async def agent(ctx: Context) -> None:
        log = logging.getLogger("my.library")
        log.debug("too fine")
        log.info("about %s", "this")
        log.warning("look out")
        log.critical("the end")
        logging.log(25, "between two levels")
        try:
            raise ValueError("of the agent")
        except ValueError:
            log.exception("caught")

    process = system.spawn(agent)
    await system.result(process)
    assert process.log is not None
    assert lines(process) == [
        ("info", "about this"),
        ("warning", "look out"),
        ("critical", "the end"),
        ("info", "between two levels"),
        ("error", "caught"),
    ]
    assert process.log[0].fields == {"logger": "my.library"}
    assert process.log[3].fields == {}
    assert "ValueError: of the agent" in process.log[4].fields["traceback"]


async def test_a_record_that_a_handler_of_the_agent_prints_is_not_repeated(system: System) -> None:
    log = logging.getLogger("library.with.handler")
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("%(levelname)s from %(name)s: %(message)s"))

    def agent() -> None:
        handler.setStream(sys.stderr)
        logging.getLogger("library").addHandler(handler)
        log.error("printed")
        log.info("below the level of the handler")
        handler.addFilter(lambda record: False)
        log.error("rejected")

    try:
        assert await printed(system, agent) == [
            ("stderr", "ERROR from library.with.handler: printed"),
            ("info", "below the level of the handler"),
            ("error", "rejected"),
        ]
    finally:
        logging.getLogger("library").removeHandler(handler)


async def test_a_record_that_cannot_be_formatted_is_one_line_with_its_place(system: System) -> None:
    record = logging.LogRecord("root", logging.WARNING, __file__, 1, "%d apples", ("no",), None)
    handler = stdio.LogRecords(system.kernel.printing)  # alone, because pytest has a handler that raises
    ((_, line),) = await printed(system, lambda: handler.handle(record))
    assert "test_printing.py" in line
    assert "TypeError" in line


async def test_a_record_of_any_size_and_content_is_bounded(system: System) -> None:
    ((_, line),) = await printed(system, lambda: logging.getLogger("x" * 100_000).error("\ud83d" * 1_000_000))
    assert len(line) < 7 * limits.MAX_LINE
    line.encode()


async def test_warnings_go_to_the_log_of_the_process(system: System) -> None:
    def warn() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(True)  # `catch_warnings` is what pytest uses, and it resets this
            warnings.warn("old function", stacklevel=1)

    ((level, line),) = await printed(system, warn)
    assert level == "warning"
    assert "UserWarning: old function" in line


# ---- from other threads


async def test_asyncio_to_thread_prints_for_the_process(system: System) -> None:
    async def agent(ctx: Context) -> None:
        await asyncio.to_thread(print, "from a thread")
        await asyncio.to_thread(logging.error, "a record from a thread")

    process = system.spawn(agent)
    await system.result(process)
    assert lines(process) == [("stdout", "from a thread"), ("error", "a record from a thread")]


async def test_a_tool_prints_for_the_process_that_called_it(system: System, bench: Bench) -> None:
    def talk(text: str) -> None:
        for n in range(3):
            print(text, n)
        print("end", end="")

    async def caller(ctx: Context, text: str) -> None:
        await ctx.tool("talk", text=text)

    bench.add(talk)
    one, two = system.spawn(caller, "one"), system.spawn(caller, "two")
    for process, text in ((one, "one"), (two, "two")):
        await system.result(process)
        assert lines(process) == [*(("stdout", f"{text} {n}") for n in range(3)), ("stdout", "end")]


async def test_lines_of_threads_keep_their_order_and_never_mix(system: System) -> None:
    def talk(name: str) -> None:
        for n in range(50):
            print(name, n, "end")

    async def agent(ctx: Context) -> None:
        await asyncio.gather(*(asyncio.to_thread(talk, name) for name in "abc"))

    process = system.spawn(agent)
    await system.result(process)
    for name in "abc":
        assert [line for _, line in lines(process) if line.startswith(name)] == [f"{name} {n} end" for n in range(50)]


async def test_a_thread_that_floods_its_log_takes_bounded_memory_and_reports_the_loss(
    system: System, printing: limits.Printing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PATIENCE", 0.0)

    async def agent(ctx: Context) -> None:
        flood = contextvars.copy_context()
        thread = threading.Thread(target=lambda: flood.run(sys.stdout.write, "x\n" * 1_000))
        more = contextvars.copy_context()
        again = threading.Thread(target=lambda: more.run(sys.stdout.write, "y\n" * 700))
        for each in (thread, again):  # this thread has the loop, so no line leaves the queue
            each.start()
            each.join()
        (queue,) = printing._queues.values()
        assert len(queue.lines) == limits.MAX_QUEUED_LINES
        await ctx.sleep(1.0)

    process = system.spawn(agent)
    await system.result(process)
    assert process.log is not None
    assert process.log[-1].fields == {"lines": 700}


async def test_lines_that_still_wait_at_the_end_of_their_process_precede_the_end(
    system: System, printing: limits.Printing
) -> None:
    async def agent(ctx: Context) -> None:
        context = contextvars.copy_context()
        thread = threading.Thread(target=lambda: context.run(sys.stdout.write, "x\n" * 900))
        thread.start()
        thread.join()

    recorder = system.recorder()
    process = system.spawn(agent, stream=recorder.stream)
    await system.result(process)
    assert len(recorder.of(Log)) == 900
    assert isinstance(recorder.events[-2], Log)
    assert not printing._queues


async def test_a_thread_that_prints_after_the_end_of_its_process_leaves_nothing_behind(
    system: System, printing: limits.Printing
) -> None:
    context: list[contextvars.Context] = []

    async def agent(ctx: Context) -> None:
        context.append(contextvars.copy_context())

    process = system.spawn(agent)
    await system.result(process)
    await system.thread(asyncio.to_thread(context[0].run, print, "too", "late"))
    await system.until(lambda: lines(process))
    assert lines(process) == [("stdout", "too late")]
    assert not printing._queues
    assert process not in printing._partial


async def test_a_plain_thread_is_unknown_and_named_by_its_own_name(system: System, echo: list[dict[str, Any]]) -> None:
    async def agent(ctx: Context) -> None:
        thread = threading.Thread(target=print, args=("who am I",), name="stray")
        thread.start()
        thread.join()

    process = system.spawn(agent)
    await system.result(process)
    assert lines(process) == []
    await system.until(lambda: any(line["event"] == "who am I" for line in echo))
    (line,) = [line for line in echo if line["event"] == "who am I"]
    assert (line["process"], line["thread"]) == ("unknown", "stray")


async def test_a_thread_does_not_wait_for_a_loop_that_has_ended(system: System, printing: limits.Printing) -> None:
    printing.close()

    async def agent(ctx: Context) -> None:
        context = contextvars.copy_context()
        thread = threading.Thread(target=lambda: context.run(sys.stdout.write, "x\n" * 5_000))
        thread.start()
        thread.join()

    process = system.spawn(agent)
    await system.result(process)
    assert [line for line in await system.call(Logs(process.pid)) if line.event == "x"] == []
