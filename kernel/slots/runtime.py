"""A model runtime: the slots of one model, its queue, its leases and its driver, restarted when it dies.

Driven by the resource manager and by what the driver reports. First come, first served. It never blocks the loop, and
a sequence it was given always ends: with its text, with a named error, or cancelled.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import psutil
import structlog

from ipc.errors import Busy, DriverFailed, LimitExceeded, LlmosError, ModelLoadFailed, from_wire
from ipc.messages import Log, State, Token
from ipc.syscalls import ModelInfo, SlotInfo
from kernel.drivers import protocol
from kernel.drivers.process import Driver, Launcher
from kernel.limits import LimitKeeper
from kernel.slots.model import ModelSpec
from kernel.slots.requirements import check_requirements
from kernel.slots.sequence import QUEUED, Sequence
from kernel.slots.slots import SUSPENDED, Slots

MAX_QUEUE = 100_000  # calls that may wait for a slot
MAX_DEATHS = 3  # driver deaths a sequence survives while on a slot
MAX_RESTARTS = 5  # driver deaths in a row without one token
MAX_BACKOFF = 10.0  # seconds between two restarts
RATE_SMOOTHING = 0.9  # weight of the past in the token rate

log = structlog.get_logger("kernel.slots")


class ModelRuntime:
    """One model. `state`: "unloaded", "loading", "ready", "restarting", "failed"."""

    def __init__(self, name: str, spec: ModelSpec, cache: Path, launch: Launcher, limits: LimitKeeper) -> None:
        self.name = name
        self.spec = spec
        self.state = "unloaded"
        self.detail = ""
        self.context: int | None = None
        self.facts: dict[str, Any] = {}
        self._cache = cache
        self._launch = launch
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._driver: Driver | None = None
        self._incarnation = 0
        self._sequences: dict[int, Sequence] = {}  # every one that is not finished, and cancelled ones the driver holds
        self._slots = Slots(spec.slots, spec.lease, self._send)
        self._deaths_in_a_row = 0
        self._restarts = 0
        self._tokens = 0
        self._steps = 0
        self._rate = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    # ---- for the resource manager

    def submit(self, sequence: Sequence) -> None:
        """Queue a new sequence; loads the model if need be. Raises `Busy` when the queue is full."""
        if len(self._slots.queue) >= MAX_QUEUE:
            raise Busy(
                f"{len(self._slots.queue)} calls wait for model {self.name}, which is the limit", retry_after=5.0
            )
        self._sequences[sequence.id] = sequence
        if sequence.process.suspended or sequence.thread.suspended:
            sequence.holds.add(SUSPENDED)
        self._slots.enqueue(sequence)
        self.load()
        self._tell(sequence)

    def load(self) -> None:
        """Start loading the model, unless it is loaded or loading."""
        if self.state in ("unloaded", "failed") and not self._closing:
            self._set_state("loading", "starting the driver")
            self._run(self._start())

    def cancel(self, sequence: Sequence) -> None:
        """The caller no longer wants it. Its slot is free when the driver has let go of it, within one step."""
        sequence.cancelled = True
        self._slots.dequeue(sequence)
        if sequence.resident:
            self._send(protocol.Cancel(sequence.id))
        else:
            self._forget(sequence)

    def hold(self, sequence: Sequence, why: str) -> None:
        """See `Slots.hold`."""
        self._slots.hold(sequence, why)

    def release(self, sequence: Sequence, why: str) -> None:
        """See `Slots.release`."""
        self._slots.release(sequence, why)

    async def close(self) -> None:
        """Stop the driver; waiting sequences are not answered any more."""
        self._closing = True
        for task in tuple(self._tasks):
            task.cancel()
        if self._driver is not None:
            await self._driver.stop()

    def model_info(self, default: bool) -> ModelInfo:
        return ModelInfo(
            self.name, self.spec.driver, self.spec.path, default, self.state, self.detail, self.context, self.facts
        )

    def slot_info(self) -> SlotInfo:
        pid = self._driver.pid if self._driver is not None else None
        places = {sequence.id: place for place, sequence in enumerate(self._slots.queue, 1)}
        return SlotInfo(
            model=self.name,
            state=self.state,
            detail=self.detail,
            driver_pid=pid,
            slots=self.spec.slots,
            used=len(self._slots.taken),
            queued=len(self._slots.queue),
            tokens=self._tokens,
            tokens_per_second=round(self._rate, 1) if self._slots.taken else 0.0,
            steps=self._steps,
            restarts=self._restarts,
            memory=_resident(pid),
            sequences=[sequence.info(places.get(sequence.id, 0)) for sequence in self._sequences.values()],
        )

    # ---- what the driver says

    def _on_message(self, incarnation: int, message: protocol.FromDriver) -> None:
        if incarnation != self._incarnation:
            return
        match message:
            case protocol.Bundle():
                self._on_bundle(message)
            case protocol.Admitted(sequence=number):
                if (sequence := self._sequences.get(number)) is not None:
                    sequence.prompt_ids = message.prompt_ids
                    sequence.process.prompt_tokens += len(message.prompt_ids)
                    self._charge(sequence, len(message.prompt_ids))
            case protocol.Parked(sequence=number):
                if (sequence := self._sequences.get(number)) is not None:
                    self._slots.parked(sequence)
            case protocol.Done(sequence=number):
                self._on_finished(number, message.reason, None)
            case protocol.Failed(sequence=number):
                self._on_finished(number, "failed", from_wire(message.error))
            case protocol.Loading():
                share = "" if message.fraction is None else f" {message.fraction:.0%}"
                self._set_state(self.state, f"{message.stage}{share}")
            case protocol.Loaded():
                self.context, self.facts = message.context, message.facts
                self._set_state("ready", "")
                self._slots.open()
            case protocol.LoadFailed():
                self._fail(from_wire(message.error))

    def _on_bundle(self, bundle: protocol.Bundle) -> None:
        made = 0
        for progress in bundle.progress:
            sequence = self._sequences.get(progress.sequence)
            if sequence is None or sequence.cancelled:
                continue
            made += len(progress.ids)
            sequence.ids += progress.ids
            sequence.process.generated_tokens += len(progress.ids)
            if progress.text:
                sequence.text.append(progress.text)
                sequence.released += len(progress.text)
                if sequence.emit and sequence.process.stream is not None:
                    sequence.process.stream.push(Token(progress.text, sequence.process.pid, sequence.call))
            self._slots.spent(sequence, len(progress.ids))
            self._charge(sequence, len(progress.ids))
        self._tokens += made
        self._steps += bundle.steps
        self._deaths_in_a_row = 0
        if bundle.seconds > 0:
            rate = made / bundle.seconds
            self._rate = RATE_SMOOTHING * self._rate + (1 - RATE_SMOOTHING) * rate if self._rate else rate

    def _charge(self, sequence: Sequence, tokens: int) -> None:
        """Book tokens that were used, and end the generation if they were too many."""
        try:
            self._limits.tokens_used(sequence.process, tokens)
        except LimitExceeded as error:
            self.cancel(sequence)
            sequence.finish("failed", error)

    def _on_finished(self, number: int, reason: str, error: LlmosError | None) -> None:
        sequence = self._sequences.get(number)
        if sequence is None:
            return
        sequence.resident = False
        if not sequence.cancelled:
            sequence.finish(reason, error)
        self._forget(sequence)

    def _forget(self, sequence: Sequence) -> None:
        self._sequences.pop(sequence.id, None)
        self._slots.free(sequence)

    def _send(self, message: protocol.ToDriver) -> None:
        """Tell the driver; if it has just died, what it was to do is done anew by its successor."""
        if self._driver is not None:
            self._driver.send(message)

    # ---- the driver's life

    async def _start(self) -> None:
        try:
            await asyncio.to_thread(check_requirements, self.name, self.spec)
            incarnation = self._incarnation = self._incarnation + 1
            self._driver = await self._launch(
                self.spec.driver,
                self.name,
                lambda message: self._on_message(incarnation, message),
                lambda how: self._on_exit(incarnation, how),
            )
            self._driver.send(protocol.Load(self.spec.path, str(self._cache), self.spec.max_tokens, self.spec.options))
        except LlmosError as error:
            self._fail(error)
        except OSError as error:
            self._fail(ModelLoadFailed(f"model {self.name}: the driver cannot be started: {error}"))

    def _fail(self, error: LlmosError) -> None:
        """The model cannot run: everything that waits for it gets the error; the next call tries again."""
        log.error("model failed", model=self.name, error=error.message)
        self._incarnation += 1  # what this driver still says is of no interest
        if self._driver is not None:
            self._run(self._driver.stop())
            self._driver = None
        self._set_state("failed", error.message)
        self._slots.close()
        self._slots.queue.clear()
        sequences, self._sequences = self._sequences, {}
        for sequence in sequences.values():
            sequence.resident = False
            if not sequence.cancelled:
                sequence.finish("failed", error)

    def _on_exit(self, incarnation: int, how: str) -> None:
        """The driver died unasked: start another, and let its sequences go on from their tokens so far."""
        if incarnation != self._incarnation or self._closing:
            return
        self._driver = None
        self._incarnation += 1
        self._deaths_in_a_row += 1
        self._restarts += 1
        running = [sequence for sequence in self._sequences.values() if sequence.resident]
        log.error("driver died", model=self.name, how=how, sequences=len(running), restart=self._restarts)
        if self._deaths_in_a_row > MAX_RESTARTS:
            self._fail(
                DriverFailed(f"the driver of model {self.name} died {self._deaths_in_a_row} times in a row ({how})")
            )
            return
        on_slot = self._slots.taken.copy()
        self._slots.close()
        self._set_state("restarting", f"driver died ({how})")
        for sequence in running:
            self._after_death(sequence, how, sequence.id in on_slot)
        delay = 0.0 if self._deaths_in_a_row == 1 else min(0.25 * 2**self._deaths_in_a_row, MAX_BACKOFF)
        self._run(self._restart(delay))

    def _after_death(self, sequence: Sequence, how: str, on_slot: bool) -> None:
        sequence.resident = False
        sequence.lease = 0
        if sequence.cancelled:
            self._sequences.pop(sequence.id, None)
            return
        sequence.deaths += on_slot
        if sequence.deaths > MAX_DEATHS:
            text = f"the driver of model {self.name} died {sequence.deaths} times while it ran this generation ({how})"
            sequence.finish("failed", DriverFailed(text))
            self._sequences.pop(sequence.id, None)
            return
        event = "driver died; the generation goes on in a new one"
        fields = {"model": self.name, "how": how, "tokens": len(sequence.ids)}
        sequence.process.write_log(Log(sequence.process.pid, time.time(), "warning", event, fields))
        self._slots.dequeue(sequence)  # where it waits if it was parked before
        self._slots.enqueue(sequence)

    async def _restart(self, delay: float) -> None:
        await asyncio.sleep(delay)
        await self._start()

    def _set_state(self, state: str, detail: str) -> None:
        if state != self.state:
            log.info("model " + state, model=self.name, **({"detail": detail} if detail else self.facts))
        self.state, self.detail = state, detail
        for sequence in self._sequences.values():
            self._tell(sequence)

    def _tell(self, sequence: Sequence) -> None:
        """Show whoever submitted the task what its call waits for."""
        stream = sequence.process.stream
        if stream is not None and sequence.state == QUEUED:
            stream.push(State(sequence.process.pid, f"model {self.name} {self.state}", self.detail))

    def _run(self, coro: Coroutine[Any, Any, None]) -> None:
        # asyncio.Task, not create_task: these are the kernel's own, whichever agent's call led here.
        task = asyncio.Task(coro, loop=self._loop)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _resident(pid: int | None) -> int:
    """The resident set of process `pid` in bytes, 0 if there is none."""
    if pid is None:
        return 0
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0
