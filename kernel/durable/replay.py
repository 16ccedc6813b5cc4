"""The replay: what the context of a durable process takes for the gate.

A call that was completed in an earlier life is answered from the journal, and nothing is done; any other goes through
the gate, and what came of it is handed over once it is kept. `kernel.durable.recording_rules` says for each kind of
call what waits for what. It decides nothing of what a call does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, NoReturn, cast

from ipc.codec import decode, encode
from ipc.errors import (
    HistoryDamaged,
    LlmosError,
    MalformedFrame,
    ReplayDiverged,
    ShuttingDown,
    from_wire,
    to_wire,
)
from ipc.syscalls import Call, Checkpoint, Reference, Sleep, Syscall, UseTool, WriteLog
from kernel.core.fiber import PARK
from kernel.core.process import Process, Thread
from kernel.durable import timeouts
from kernel.durable.commits import Commits
from kernel.durable.history import CallHistory, Key, history_of
from kernel.durable.recorded_call import (
    CallFingerprint,
    Outcome,
    RecordedCancellation,
    RecordedDeadline,
    RecordedFailure,
    RecordedRegion,
    RecordedValue,
    asked,
    raw,
    revealed,
)
from kernel.durable.recording_rules import FIRST, LAST, RULES, RecordingRule
from kernel.durable.state import DurableState
from kernel.gate import BURST, Gate
from kernel.journal.changes import PutCall, TaskProgressed
from kernel.lib.units import measured
from kernel.memory.shared import SharedMemory
from kernel.processes.exit import ProcessExit

AHEAD = 256  # commits that may be under way while a thread goes on

Handler = Callable[[Process, Any, Key], Coroutine[Any, Any, Any]]
Again = Callable[[Process, Any, Any], Coroutine[Any, Any, None]]


class Replay:
    """`handlers` make calls in ways of their own; `again` builds up what a call from the journal left in the kernel."""

    def __init__(
        self, gate: Gate, commits: Commits, process_exit: ProcessExit, shared: SharedMemory, state: DurableState
    ) -> None:
        self._gate = gate
        self._commits = commits
        self._process_exit = process_exit
        self._shared = shared
        self._state = state
        self.handlers: dict[type[Syscall], Handler] = {}
        self.again: dict[type[Syscall], Again] = {}

    # ---- as the gate

    async def call(self, process: Process, call: Syscall) -> Any:
        """Make `call`, or answer it from the journal."""
        kind = type(call)
        rule = RULES.get(kind)
        if rule is None or process.dying:
            return await self._gate.call(process, call)
        history, thread = history_of(process), cast("Thread", asyncio.current_task())
        if kind is Checkpoint:
            return await self._state.checkpoint(process, history, thread, cast("Checkpoint", call))
        key = history.next(thread.path)
        recorded = history.records.pop(key, None)
        question = asked(call)
        if recorded is None:
            if rule is RecordingRule.REEXECUTE:
                return await self._made_again(process, thread, call, key, question)
            return await self._made(process, thread, call, key, question, rule)
        process.calls += 1
        if not process.calls % BURST:
            await _give_way(process, thread)
        outcome = self._read(process, key, question, recorded)
        if outcome is None:  # the process has been ended
            await _for_ever(thread, "its end")
        return await self._recall(process, thread, call, key, question, outcome)

    def call_now(self, process: Process, call: Syscall) -> Any:
        """Make `call`, which never waits. A line for the log was written before if the thread has been here before."""
        thread = asyncio.current_task()
        if type(call) is WriteLog and isinstance(thread, Thread) and history_of(process).replays(thread.path):
            return None
        return self._gate.call_now(process, call)

    # ---- for the first time

    async def _made(
        self, process: Process, thread: Thread, call: Syscall, key: Key, question: CallFingerprint, rule: RecordingRule
    ) -> Any:
        history = history_of(process)
        try:
            if rule in FIRST:
                await self._commits.reach(thread, history.last)
            if type(call) is Sleep:
                self._keep(history, key, question, RecordedDeadline(time.time() + timeouts.seconds(call)))
            answer = await self._perform(process, call, key, question)
            outcome = self._outcome(process, call, answer)
        except asyncio.CancelledError:
            if not process.dying:
                self._keep(history, key, question, RecordedCancellation())
            raise
        except ShuttingDown:
            await _for_ever(thread, "the next start of the daemon")
        except LlmosError as error:
            await self._failed(process, thread, key, question, error, rule)
            raise
        if type(call) is Sleep:
            return None
        number = self._keep(history, key, question, outcome)
        if rule in LAST or number - self._commits.done > AHEAD:
            await self._commits.hand_over(thread, number)
        return revealed(process, call, outcome.value) if isinstance(outcome, RecordedValue) else answer

    async def _made_again(
        self, process: Process, thread: Thread, call: Syscall, key: Key, question: CallFingerprint
    ) -> Any:
        try:
            return await self._gate.call(process, call)
        except asyncio.CancelledError:
            if not process.dying:
                self._keep(history_of(process), key, question, RecordedCancellation())
            raise
        except LlmosError as error:
            await self._failed(process, thread, key, question, error, RecordingRule.REEXECUTE)
            raise

    async def _perform(self, process: Process, call: Syscall, key: Key, question: CallFingerprint) -> Any:
        handler = self.handlers.get(type(call))
        due = timeouts.due(call)
        if due is None:
            keeping = None
        else:
            row = PutCall(process.pid, *key, encode(question), encode(RecordedDeadline(due)))
            keeping = asyncio.get_running_loop().call_later(timeouts.KEPT_AFTER, self._commits.keep, row)
        try:
            if handler is None:
                return await self._gate.call(process, call)
            return await self._gate.call_by(process, call, partial(handler, process, call, key))
        finally:
            if keeping is not None:
                keeping.cancel()

    async def _failed(
        self,
        process: Process,
        thread: Thread,
        key: Key,
        question: CallFingerprint,
        error: LlmosError,
        rule: RecordingRule,
    ) -> None:
        if process.dying:
            return
        number = self._keep(history_of(process), key, question, RecordedFailure(to_wire(error)))
        if rule in LAST:
            await self._commits.hand_over(thread, number)

    def _outcome(self, process: Process, call: Syscall, answer: Any) -> Outcome:
        """Raises `NotEncodable`."""
        if type(call) is UseTool and type(answer) is Reference:
            return RecordedRegion(answer.name, raw(self._shared.value(answer.name)))
        return RecordedValue(raw(answer), process.prompt_tokens, process.generated_tokens)

    def _keep(self, history: CallHistory, key: Key, question: CallFingerprint, outcome: Outcome) -> int:
        row = PutCall(history.pid, *key, encode(question), encode(outcome))
        tree = history.tree
        if tree.advanced:
            history.last = self._commits.keep(row)
        else:
            tree.advanced = True
            history.last = self._commits.keep(row, TaskProgressed(tree.id))
        return history.last

    # ---- once more

    def _read(
        self, process: Process, key: Key, question: CallFingerprint, recorded: tuple[bytes, bytes]
    ) -> Outcome | None:
        """What came of a call the first time. None: it was another call, or nobody can tell; the task ends by that."""
        history = history_of(process)
        try:
            before = decode(recorded[0], CallFingerprint)
            outcome: Outcome = decode(recorded[1], Outcome)
        except MalformedFrame as error:
            self._end(history, _unreadable(process, key, error))
            return None
        if (before.kind, before.digest) == (question.kind, question.digest):
            return outcome
        version = history.row.version if history.row is not None else history.version
        changed = "" if version == history.version else "; its code has changed since it began"
        self._end(
            history,
            ReplayDiverged(
                f"{process.program} took another way than before the daemon ended, at call {key.number} of thread "
                f"{key.thread}. Then: {before}. Now: {question}{changed}. What a durable agent does may depend on the "
                "answers to its calls alone: on ctx.time() and ctx.random(), not on time and random",
                pid=process.pid,
                thread=key.thread,
                number=key.number,
                then=str(before),
                now=str(question),
                version_then=version,
                version_now=history.version,
            ),
        )
        return None

    async def _recall(
        self, process: Process, thread: Thread, call: Syscall, key: Key, question: CallFingerprint, outcome: Outcome
    ) -> Any:
        if type(call) is Call and isinstance(outcome, RecordedFailure | RecordedCancellation):
            history_of(process).give_up(key)
        match outcome:
            case RecordedCancellation():  # it comes again, from wherever it came
                await _for_ever(thread, "its cancellation, as before")
            case RecordedDeadline(due=due) if type(call) is Sleep:
                if not history_of(process).replays(thread.path):  # else it was over, whatever the clock says by now
                    await self._sleep_on(process, call, key, question, due)
                return None
            case RecordedDeadline(due=due):
                rule = RULES[type(call)]
                return await self._made(process, thread, timeouts.rest(call, due), key, question, rule)
            case RecordedFailure(error=error):
                raise from_wire(error)
            case RecordedRegion(name=name, value=value):
                kept, size = measured(value)
                self._shared.put(process, name, kept, size, ephemeral=True)
                return Reference(name, size)
        process.prompt_tokens = max(process.prompt_tokens, outcome.prompt_tokens)
        process.generated_tokens = max(process.generated_tokens, outcome.generated_tokens)
        try:
            answer = revealed(process, call, outcome.value)
        except MalformedFrame as error:
            self._end(history_of(process), _unreadable(process, key, error))
            await _for_ever(thread, "its end")
        again = self.again.get(type(call))
        if again is not None:
            await again(process, call, answer)
        return answer

    async def _sleep_on(self, process: Process, call: Sleep, key: Key, question: CallFingerprint, due: float) -> None:
        """Sleep for the rest; if the clock was set back meanwhile, for no longer than was asked for."""
        rest = min(max(due - time.time(), 0.0), timeouts.seconds(call))
        try:
            await self._gate.call(process, Sleep(rest))
        except asyncio.CancelledError:
            if not process.dying:
                self._keep(history_of(process), key, question, RecordedCancellation())
            raise

    # ---- inside

    def _end(self, history: CallHistory, error: LlmosError) -> None:
        root = history.tree.root
        if root is not None:
            self._process_exit.finish(root, "failed", error=to_wire(error))


def _unreadable(process: Process, key: Key, error: LlmosError) -> HistoryDamaged:
    where = f"call {key.number} of thread {key.thread} of process {process.pid}"
    return HistoryDamaged(f"{where} cannot be read in the journal: {error.message}", pid=process.pid)


async def _give_way(process: Process, thread: Thread) -> None:
    """Let others run, in a long replay. A cancellation that comes now did not come then: it is for the next wait."""
    try:
        await asyncio.sleep(0)
    except asyncio.CancelledError as error:
        if process.dying:
            raise
        thread.defer(error)


async def _for_ever(thread: Thread, why: str) -> NoReturn:
    while True:
        thread.waits_for = why
        await PARK
