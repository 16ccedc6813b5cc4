"""The replay, which takes the calls of durable processes in place of the gate.

Called by the context of a durable process. A call that has a record is answered from the record and has no effect on
others. Any other call goes through the gate, and its outcome is recorded, by the rules of
`kernel.durable.recording_rules`. The replay never implements a call: handlers do.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn, cast

from ipc.codec import decode, encode
from ipc.errors import (
    HistoryDamaged,
    InvalidCall,
    LlmosError,
    MalformedFrame,
    ReplayDiverged,
    ShuttingDown,
    from_wire,
    to_wire,
)
from ipc.syscalls import Call, Checkpoint, Reference, Sleep, Syscall, UseTool, WriteLog
from kernel.core.fiber import PARK
from kernel.core.plain_wait import PlainWait
from kernel.core.process import Process, Thread
from kernel.durable import timeouts
from kernel.durable.commits import Commits
from kernel.durable.history import CallHistory, CallKey, history_of
from kernel.durable.recorded_call import (
    CallFingerprint,
    Outcome,
    RecordedCancellation,
    RecordedDeadline,
    RecordedFailure,
    RecordedRegion,
    RecordedValue,
    fingerprint_of,
    raw,
    revealed,
)
from kernel.durable.recording_rules import RULES, WAITS_AFTER, WAITS_BEFORE, RecordingRule
from kernel.durable.state import DurableState
from kernel.gate import CALLS_PER_TURN, Gate
from kernel.journal.changes import PutCall, TaskProgressed
from kernel.lib.call_checks import check_call
from kernel.lib.units import isolate_and_measure
from kernel.memory.shared import SharedMemory
from kernel.processes.exit import ProcessExit

MAX_COMMITS_AHEAD = 256  # unfinished commits beyond which every call waits for its record
ITS_END = PlainWait("its end", "ending", "ending", "its process has ended")
ITS_CANCELLATION = PlainWait(
    "its cancellation, as in the previous run",
    "outside",
    "waiting for its cancellation, as in the previous run of the daemon",
    "its own code cancels the call",
)
NEXT_START = PlainWait(
    "the next start of the daemon", "restart", "waiting for the next start of the daemon", "the daemon has restarted"
)

Handler = Callable[[Process, Any, CallKey], Coroutine[Any, Any, Any]]
Restorer = Callable[[Process, Any, Any], Coroutine[Any, Any, None]]


class Replay:
    """Stands in for the gate, for durable processes.

    `handlers` make calls in place of the gate's handlers. After a call was answered from its record, `restorers`
    rebuild the state that the call left in the kernel's memory in the previous run.
    """

    def __init__(
        self, gate: Gate, commits: Commits, process_exit: ProcessExit, shared: SharedMemory, state: DurableState
    ) -> None:
        self._gate = gate
        self._commits = commits
        self._process_exit = process_exit
        self._shared = shared
        self._state = state
        self.handlers: dict[type[Syscall], Handler] = {}
        self.restorers: dict[type[Syscall], Restorer] = {}

    # ---- in place of the gate

    async def call(self, process: Process, call: Syscall) -> Any:
        """Make `call`, or answer it from the journal."""
        kind = type(call)
        rule = RULES.get(kind)
        if rule is None or process.dying or not isinstance(asyncio.current_task(), Thread):
            return await self._gate.call(process, call)  # which refuses what is no thread
        history, thread = history_of(process), cast("Thread", asyncio.current_task())
        if kind is Checkpoint:
            return await self._state.checkpoint(process, history, thread, cast("Checkpoint", call))
        key = history.next_key(thread.path)
        recorded = history.records.pop(key, None)
        fingerprint = fingerprint_of(call)
        if recorded is None:
            if rule is RecordingRule.REEXECUTE:
                return await self._reexecute(process, thread, call, key, fingerprint)
            return await self._execute(process, thread, call, key, fingerprint, rule)
        process.calls += 1
        if not process.calls % CALLS_PER_TURN:
            await _yield_to_others(process, thread)
        outcome = self._matching_outcome(process, key, fingerprint, recorded)
        if outcome is None:  # the task has failed, and this process ends with it
            await _wait_forever(thread, ITS_END)
        return await self._answer_from_record(process, thread, call, key, fingerprint, outcome)

    def call_now(self, process: Process, call: Syscall) -> Any:
        """Make `call`, which never waits. Drop a log line while the thread replays: the previous run wrote it."""
        try:
            thread = asyncio.current_task()
        except RuntimeError:  # in a worker thread, where the gate refuses the call
            thread = None
        if type(call) is WriteLog and isinstance(thread, Thread) and history_of(process).is_replaying(thread.path):
            return None
        return self._gate.call_now(process, call)

    # ---- calls without a record

    async def _execute(
        self,
        process: Process,
        thread: Thread,
        call: Syscall,
        key: CallKey,
        fingerprint: CallFingerprint,
        rule: RecordingRule,
    ) -> Any:
        history = history_of(process)
        try:
            check_call(call)  # here, because the record of a refusal belongs to the history, too
            if rule in WAITS_BEFORE:
                await self._commits.wait(thread, history.last_commit)
            if type(call) is Sleep:
                self._record(history, key, fingerprint, RecordedDeadline(time.time() + timeouts.seconds(call)))
            answer = await self._run_handler(process, call, key, fingerprint)
            outcome = self._outcome(process, call, answer)
        except asyncio.CancelledError:
            if not process.dying:
                self._record(history, key, fingerprint, RecordedCancellation())
            raise
        except ShuttingDown:
            await _wait_forever(thread, NEXT_START)
        except LlmosError as error:
            await self._record_failure(process, thread, key, fingerprint, error, rule)
            raise
        if type(call) is Sleep:
            return None
        number = self._record(history, key, fingerprint, outcome)
        if rule in WAITS_AFTER or number - self._commits.committed > MAX_COMMITS_AHEAD:
            await self._commits.wait_deferring_cancellation(thread, number)
        return revealed(process, call, outcome.value) if isinstance(outcome, RecordedValue) else answer

    async def _reexecute(
        self, process: Process, thread: Thread, call: Syscall, key: CallKey, fingerprint: CallFingerprint
    ) -> Any:
        try:
            return await self._gate.call(process, call)
        except asyncio.CancelledError:
            if not process.dying:
                self._record(history_of(process), key, fingerprint, RecordedCancellation())
            raise
        except LlmosError as error:
            await self._record_failure(process, thread, key, fingerprint, error, RecordingRule.REEXECUTE)
            raise

    async def _run_handler(self, process: Process, call: Syscall, key: CallKey, fingerprint: CallFingerprint) -> Any:
        handler = self.handlers.get(type(call))
        due = timeouts.due(call)
        if due is None:
            timer = None
        else:
            row = PutCall(process.pid, *key, encode(fingerprint), encode(RecordedDeadline(due)))
            timer = asyncio.get_running_loop().call_later(timeouts.PERSIST_AFTER, self._commits.persist, row)
        try:
            if handler is None:
                return await self._gate.call(process, call)
            return await self._gate.call_by(process, call, partial(handler, process, call, key))
        finally:
            if timer is not None:
                timer.cancel()

    async def _record_failure(
        self,
        process: Process,
        thread: Thread,
        key: CallKey,
        fingerprint: CallFingerprint,
        error: LlmosError,
        rule: RecordingRule,
    ) -> None:
        if process.dying:
            return
        number = self._record(history_of(process), key, fingerprint, RecordedFailure(to_wire(error)))
        if rule in WAITS_AFTER:
            await self._commits.wait_deferring_cancellation(thread, number)

    def _outcome(self, process: Process, call: Syscall, answer: Any) -> Outcome:
        """Raises `NotEncodable`."""
        if type(call) is UseTool and type(answer) is Reference:
            return RecordedRegion(answer.name, raw(self._shared.value(answer.name)))
        return RecordedValue(raw(answer), process.prompt_tokens, process.generated_tokens)

    def _record(self, history: CallHistory, key: CallKey, fingerprint: CallFingerprint, outcome: Outcome) -> int:
        row = PutCall(history.pid, *key, encode(fingerprint), encode(outcome))
        task = history.task
        if task.progressed:
            history.last_commit = self._commits.persist(row)
        else:
            task.progressed = True
            history.last_commit = self._commits.persist(row, TaskProgressed(task.id))
        return history.last_commit

    # ---- calls with a record

    def _matching_outcome(
        self, process: Process, key: CallKey, fingerprint: CallFingerprint, recorded: tuple[bytes, bytes]
    ) -> Outcome | None:
        """The recorded outcome. If the record is of another call or cannot be decoded, fails the task; returns None."""
        history = history_of(process)
        try:
            before = decode(recorded[0], CallFingerprint)
            outcome: Outcome = decode(recorded[1], Outcome)
        except MalformedFrame as error:
            self._fail_task(history, _unreadable(process, key, error))
            return None
        if (before.kind, before.digest) == (fingerprint.kind, fingerprint.digest):
            return outcome
        version = history.row.version if history.row is not None else history.version
        changed = "" if version == history.version else "; its code has changed since the process started"
        self._fail_task(
            history,
            ReplayDiverged(
                f"call {key.number} of thread {key.thread} of {process.program} is not the same as in the previous "
                f"run. Then: {before}. Now: {fingerprint}{changed}. The calls of a durable agent may depend only on "
                "the answers to earlier calls: use ctx.time() and ctx.random(), not the modules of these names",
                pid=process.pid,
                thread=key.thread,
                number=key.number,
                then=str(before),
                now=str(fingerprint),
                version_then=version,
                version_now=history.version,
            ),
        )
        return None

    async def _answer_from_record(
        self,
        process: Process,
        thread: Thread,
        call: Syscall,
        key: CallKey,
        fingerprint: CallFingerprint,
        outcome: Outcome,
    ) -> Any:
        if type(call) is Call and isinstance(outcome, RecordedFailure | RecordedCancellation):
            history_of(process).abandon(key)
        with suppress(InvalidCall):  # an older version of llmosd recorded answers to calls that this one refuses
            check_call(call)
        match outcome:
            case RecordedCancellation():  # the agent will cancel the call again, as in the previous run
                await _wait_forever(thread, ITS_CANCELLATION)
            case RecordedDeadline(due=due) if type(call) is Sleep:
                # If the thread's next call has a record, the sleep had ended, even if the clock was set back since.
                if not history_of(process).is_replaying(thread.path):
                    await self._sleep_remainder(process, call, key, fingerprint, due)
                return None
            case RecordedDeadline(due=due):
                rule = RULES[type(call)]
                return await self._execute(process, thread, timeouts.with_remaining(call, due), key, fingerprint, rule)
            case RecordedFailure(error=error):
                raise from_wire(error)
            case RecordedRegion(name=name, value=value):
                region, size = isolate_and_measure(value)
                self._shared.put(process, name, region, size, ephemeral=True)
                return Reference(name, size)
        process.prompt_tokens = max(process.prompt_tokens, outcome.prompt_tokens)
        process.generated_tokens = max(process.generated_tokens, outcome.generated_tokens)
        try:
            answer = revealed(process, call, outcome.value)
        except MalformedFrame as error:
            self._fail_task(history_of(process), _unreadable(process, key, error))
            await _wait_forever(thread, ITS_END)
        restore = self.restorers.get(type(call))
        if restore is not None:
            await restore(process, call, answer)
        return answer

    async def _sleep_remainder(
        self, process: Process, call: Sleep, key: CallKey, fingerprint: CallFingerprint, due: float
    ) -> None:
        """Sleep until `due`, but never longer than `call` says, because the clock may have been set back."""
        rest = min(max(due - time.time(), 0.0), timeouts.seconds(call))
        try:
            await self._gate.call(process, Sleep(rest))
        except asyncio.CancelledError:
            if not process.dying:
                self._record(history_of(process), key, fingerprint, RecordedCancellation())
            raise

    # ---- inside

    def _fail_task(self, history: CallHistory, error: LlmosError) -> None:
        root = history.task.root
        if root is not None:
            self._process_exit.finish(root, "failed", error=to_wire(error))


def _unreadable(process: Process, key: CallKey, error: LlmosError) -> HistoryDamaged:
    where = f"call {key.number} of thread {key.thread} of process {process.pid}"
    return HistoryDamaged(f"{where} cannot be decoded from the journal: {error.message}", pid=process.pid)


async def _yield_to_others(process: Process, thread: Thread) -> None:
    """Let other threads run during a long replay. Defer a cancellation, because the recorded call had none here."""
    try:
        await asyncio.sleep(0)
    except asyncio.CancelledError as error:
        if process.dying:
            raise
        thread.defer(error)


async def _wait_forever(thread: Thread, wait: PlainWait) -> NoReturn:
    while True:
        thread.waits_for = wait
        await PARK
