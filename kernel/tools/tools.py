"""The tool subsystem: finds a tool, checks the arguments, runs it in a worker thread and returns the result.

The gate calls its handlers. A caller that is killed or times out stops waiting, and the result is dropped. The tool
subsystem never stops a plain function: the call holds its place until the function has returned, even by an exception.
The coroutine of an `async def` tool is cancelled.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import Any, cast
from weakref import WeakKeyDictionary

from ipc.codec import isolate, reveal
from ipc.errors import AgentFailed, Busy, LlmosError, NotEncodable, TimedOut, ToolFailed, UnknownTool
from ipc.syscalls import Reference, ToolInfo, Tools, UseTool
from kernel.core.fiber import PARK
from kernel.core.process import Process, Thread
from kernel.core.timers import Timer
from kernel.gate import Gate
from kernel.lib import failures
from kernel.lib.pages import from_place, small_row
from kernel.lib.units import isolate_and_measure
from kernel.lib.validation import check_text, check_timeout
from kernel.memory.shared import RESERVED, SharedMemory
from kernel.programs.jobs import NotYet
from kernel.programs.loader import ProgramLoader
from kernel.programs.origin import ORIGIN
from kernel.programs.suggestion import did_you_mean, similar
from kernel.programs.tool import CALL_ID, Tool, ToolSpec, load
from kernel.tools.concurrency import PAUSED, RUNNING, ConcurrencyLimit, ToolWait
from kernel.tools.coroutines import CoroutineRun
from kernel.tools.workers import Workers

MAX_NAME = 4096  # characters
LARGE = 1024 * 1024  # bytes: a longer encoded result is returned by reference
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0  # seconds before another attempt; pauses double


class ToolRun:
    """One attempt: a function in a worker thread, and its outcome once the function has returned."""

    __slots__ = ("coroutine", "done", "error", "size", "thread", "value")

    def __init__(self, thread: Thread) -> None:
        self.thread: Thread | None = thread  # None: the caller gave up
        self.coroutine = CoroutineRun()
        self.done = False
        self.value: Any = None
        self.size = 0
        self.error: LlmosError | None = None

    def execute(self, tool: Tool, arguments: dict[str, Any]) -> None:
        """Call the function. Runs in the worker thread and never raises."""
        self.error = ToolFailed(f"tool {tool.name}: its thread was ended from outside", tool=tool.name)
        try:
            value = tool.function(**arguments)
            if inspect.iscoroutine(value):
                value = self.coroutine.run(value)
        except BaseException as error:
            self.error = _failure(tool, error)
            return
        finally:
            with suppress(BaseException):  # text without its newline, before the next function prints in this thread
                sys.stdout.flush()
                sys.stderr.flush()
        try:
            self.value, self.size = isolate_and_measure(value)
            self.error = None
        except NotEncodable as error:
            self.error = NotEncodable(f"the result of tool {tool.name}: {error.message}")
        except BaseException as error:  # of a method of the result
            self.error = _failure(tool, error)


def _failure(tool: Tool, error: BaseException) -> ToolFailed:
    place = failures.place(error)
    what = failures.with_place(place, f"tool {tool.name}: {failures.summary(error)}")
    return ToolFailed(what, tool=tool.name, traceback=failures.traceback_text(error), place=place)


class ToolSubsystem:
    """The tools, each with a concurrency limit. The taken places stay taken when the file of a tool changes."""

    def __init__(
        self,
        configured: Mapping[str, ToolSpec],
        programs: ProgramLoader,
        shared: SharedMemory,
        gate: Gate,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._configured = configured
        self._programs = programs
        self._shared = shared
        self._loaded: dict[str, Tool] = {}  # the tools that the settings name
        self._limits: dict[str, ConcurrencyLimit] = {}
        self._calls: WeakKeyDictionary[Thread, int] = WeakKeyDictionary()
        self._client_calls: dict[int, int] = {}  # by pid: each call of a client has its own thread
        self.workers = Workers(loop)
        gate.register({UseTool: self.use, Tools: self.listing})

    def use(self, process: Process, call: UseTool) -> Coroutine[Any, Any, Any]:
        timeout = check_timeout(call.timeout)
        check_text(call.name, "the name of a tool", MAX_NAME)
        return self._use(process, call, timeout, self._call_id(process), isolate(call.args))

    def listing(self, process: Process, call: Tools) -> Coroutine[Any, Any, list[ToolInfo]]:
        return self._list(call.start)

    def process_ended(self, process: Process) -> None:
        self._client_calls.pop(process.pid, None)

    def close(self) -> None:
        """End the worker threads. A thread that hangs ends with the daemon."""
        self.workers.close()

    # ---- inside

    def _call_id(self, process: Process) -> str:
        """The id of the current call: the pid, the path of the thread, and the number of the call in that thread.

        For a durable process it is the id of the recorded call, which stays the same across restarts of the daemon.
        """
        if process.is_client:
            number = self._client_calls[process.pid] = self._client_calls.get(process.pid, 0) + 1
            return f"{process.pid}.0.{number}"
        thread = cast("Thread", asyncio.current_task())
        if process.durable is not None:
            return process.durable.current_call_id(thread.path)
        number = self._calls[thread] = self._calls.get(thread, 0) + 1
        return f"{process.pid}.{thread.path}.{number}"

    async def _use(self, process: Process, call: UseTool, timeout: float | None, call_id: str, args: Any) -> Any:
        tool = self._find(call.name)
        if tool is None:
            tool = await self._programs.in_worker(partial(self._load, call.name))
        tool.bind(reveal(args))
        limit = self._limit(tool)
        limit.calls += 1
        thread = cast("Thread", asyncio.current_task())
        if call.timeout is None:
            timeout = tool.mark.timeout
        timer = Timer(thread, timeout)
        try:
            for attempt in range(tool.mark.retries + 1):
                if attempt:
                    await self._pause(limit, timer, tool, min(FIRST_PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE))
                # Bind again for each attempt: an attempt may have changed its arguments.
                arguments = tool.bind(reveal(args)) | ({CALL_ID: call_id} if tool.takes_call_id else {})
                await limit.enter(timer, wait=call.wait or attempt > 0)
                run = await self._attempt(limit, tool, timer, arguments)
                if not isinstance(run.error, ToolFailed):
                    break
        except BaseException:
            limit.failures += 1
            raise
        finally:
            timer.cancel()
        if run.error is not None:
            limit.failures += 1
            raise run.error
        if run.size <= LARGE:
            return run.value
        name = RESERVED + call_id
        self._shared.put(process, name, run.value, run.size, ephemeral=True)
        return Reference(name, run.size)

    async def _attempt(self, limit: ConcurrencyLimit, tool: Tool, timer: Timer, arguments: dict[str, Any]) -> ToolRun:
        """Run the function once. The calling thread has taken a place, which is freed when the function returns."""
        thread = cast("Thread", asyncio.current_task())
        run = ToolRun(thread)
        context = copy_context()
        context.run(ORIGIN.set, thread.process)  # for the tool calls of clients; the threads of an agent have it
        function = partial(context.run, run.execute, tool, arguments)
        try:
            self.workers.submit(function, partial(self._returned, limit, run))
        except RuntimeError as error:
            limit.leave()
            raise Busy(f"tool {tool.name}: cannot start a thread: {error}; try again later", retry_after=1.0) from None
        wait = ToolWait(limit, RUNNING)
        limit.callers[thread] = None
        try:
            while not run.done:
                if timer.expired:
                    goes_on = "is cancelled" if tool.is_coroutine else "goes on"
                    raise TimedOut(
                        f"tool {tool.name} did not return in time; it {goes_on}, and holds its place until it returns",
                        tool=tool.name,
                    )
                thread.waits_for = wait
                await PARK
        except BaseException:
            if not run.done:
                run.thread = None
                limit.abandoned += 1
                run.coroutine.cancel()
            raise
        finally:
            del limit.callers[thread]
        return run

    async def _pause(self, limit: ConcurrencyLimit, timer: Timer, tool: Tool, seconds: float) -> None:
        thread = cast("Thread", asyncio.current_task())
        pause, wait = Timer(thread, seconds), ToolWait(limit, PAUSED)
        try:
            while not pause.expired:
                if timer.expired:
                    raise TimedOut(
                        f"tool {tool.name} failed, and its timeout leaves no time for another attempt", tool=tool.name
                    )
                thread.waits_for = wait
                await PARK
        finally:
            pause.cancel()

    def _returned(self, limit: ConcurrencyLimit, run: ToolRun) -> None:
        run.done = True
        limit.leave()
        if run.thread is None:
            limit.abandoned -= 1
        else:
            run.thread.wake()

    def _limit(self, tool: Tool) -> ConcurrencyLimit:
        limit = self._limits.get(tool.name)
        if limit is None:
            limit = self._limits[tool.name] = ConcurrencyLimit(tool)
        limit.tool = tool
        return limit

    def _find(self, name: str) -> Tool | None:
        """The tool, if it is loaded. A tool from the settings takes precedence over one from a file."""
        return self._loaded.get(name) if name in self._configured else self._programs.tools.get(name)

    def _load(self, name: str, since: float) -> Tool:
        """Load a tool. For `in_worker`. Raises `UnknownTool`, and `ToolFailed` if the tool cannot be loaded."""
        if name in self._configured:
            return self._load_configured(name)
        pending = self._programs.look_everywhere(since)
        tool = self._programs.tools.get(name)
        if tool is None and name in self._programs.broken_tools:
            broken = self._programs.broken_tools[name]
            raise ToolFailed(f"tool {name} in {broken.source} cannot be used: {broken.error}", tool=name)
        if tool is None and pending:
            raise NotYet(pending)
        if tool is None:
            known = sorted({*self._configured, *self._programs.tools})
            near = similar(name, known)
            raise UnknownTool(
                f"there is no tool {name!r}; {did_you_mean(near)}Known: {', '.join(known) or 'none'}",
                tool=name,
                near=[] if near is None else [near],
            )
        return tool

    async def _list(self, start: int | None) -> list[ToolInfo]:
        errors = await self._programs.in_worker(self._load_all)
        tools = self._programs.tools | self._loaded
        rows = [self._info(tool) for tool in tools.values()]
        rows += [row for name, row in self._programs.broken_tools.items() if name not in tools]
        rows += [
            ToolInfo(name, "", "", self._configured[name].function, 0, None, 0, error=error)
            for name, error in errors.items()
        ]
        return [small_row(row) for row in from_place(sorted(rows, key=lambda row: row.name), start, Tools)]

    def _load_configured(self, name: str) -> Tool:
        """A tool that the settings name."""
        spec = self._configured[name]
        if name not in self._loaded:
            self._loaded[name] = self._programs.do(("tool", name), spec.function, partial(load, name, spec))
        return self._loaded[name]

    def _load_all(self, since: float) -> dict[str, str]:
        self._programs.refresh(since)
        errors = {}
        for name in self._configured:
            try:
                self._load_configured(name)
            except (ToolFailed, AgentFailed, Busy) as error:
                errors[name] = error.message
            except NotYet as error:
                errors[name] = error.jobs[0].described()
        return errors

    def _info(self, tool: Tool) -> ToolInfo:
        mark = tool.mark
        described = tool.name, mark.summary, tool.signature, tool.source, mark.concurrency, mark.timeout, mark.retries
        limit = self._limits.get(tool.name)
        if limit is None:
            return ToolInfo(*described)
        counts = limit.running, limit.abandoned, len(limit.queue), limit.calls, limit.failures
        return ToolInfo(*described, *counts)
