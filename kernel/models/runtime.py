"""A model runtime: one model, its workload, and its driver, which is loaded, unloaded and replaced.

Called by the model calls, the resource manager and the residency; the driver's life reports to it. It never blocks the
loop, and each sequence that it takes ends: with its result, with a named error, or cancelled.
"""

from __future__ import annotations

import asyncio

import structlog

from ipc.errors import Busy, DriverFailed, LlmosError, ModelLoadFailed, from_wire
from kernel.drivers import protocol
from kernel.lib.restartable_timer import Timer
from kernel.models.active_sequences import Workload
from kernel.models.driver_supervisor import DriverLife
from kernel.models.loader import Loader
from kernel.models.sequence import Sequence
from kernel.models.services import ModelServices
from kernel.models.slot_rules import SlotRules
from kernel.models.spec import ModelSpec
from kernel.models.state import FAILED, LEAVING, LOADING, READY, RESTARTING, UNLOADED, WAITING, ModelState
from kernel.models.unloader import Unloader
from kernel.policy.registry import PolicySettings, make

MAX_QUEUE = 100_000  # calls that may wait for a slot
MAX_RESTARTS = 5  # driver deaths in a row without one token
MAX_LATE_LOADS = 2  # loads in a row that took too long
STALL = 0.9  # seconds of silence after which a driver may be waiting for memory

log = structlog.get_logger("kernel.models")


class ModelRuntime:
    """One model. `work` holds its sequences and slots, `state` says how far it is."""

    def __init__(self, name: str, spec: ModelSpec, policy: PolicySettings, services: ModelServices) -> None:
        self.name = name
        self.spec = spec
        self._residency = services.residency
        self._balance = services.balance
        self._loop = asyncio.get_running_loop()
        self.loader = Loader(name, spec, services)
        self.footprint = self.loader.footprint
        self._life = DriverLife(name, spec, services.launch, self._loop, self)
        self.work = Workload(
            name,
            spec,
            make(policy),
            services.limits,
            services.area,
            services.finished,
            self.footprint,
            self._loop.time,
            self._life.ask,
        )
        self._slots = self.work.slots
        self.rules = SlotRules(name, policy, self._slots)
        # The hooks of the slots, all set here. Each has one listener, so their order does not matter.
        self._slots.on_shed = self.work.shed
        self._slots.on_relief = self.release
        self._slots.on_reason = self.rules.policy_changed
        self._sequences = self.work.sequences
        self.state = ModelState(name, self._sequences, self._loop.time)
        self._unloader = Unloader(name, self.work, self._life, self._loop.time)
        unused = f"nobody used it for {spec.keep_alive:g} s"
        self._keep_alive = Timer(self._loop, lambda: self.leave(unused))
        self._closing = False

    # ---- for the model calls and the resource manager

    def submit(self, sequence: Sequence) -> None:
        """Queue a new sequence; loads the model if need be. Raises `Busy` when the queue is full."""
        waiting = self._slots.waiting
        if waiting >= MAX_QUEUE:
            raise Busy(f"{waiting} calls wait for model {self.name}, which is the limit", retry_after=5.0)
        self.work.add(sequence)
        self.load()
        self._settle()
        self.state.show(sequence)

    def load(self) -> None:
        """Load the model as soon as there is room, unless it is loaded or loading."""
        if self.state.name in (UNLOADED, FAILED) and not self._closing:
            self.state.set(LOADING, "looking at what it needs")
            self._life.run(self._prepare())

    def cancel(self, sequence: Sequence) -> None:
        """The caller no longer wants it."""
        self.work.cancel(sequence)
        self._settle()

    def hold(self, sequence: Sequence, why: str) -> None:
        """See `Slots.hold`."""
        self._slots.hold(sequence, why)
        self._settle()

    def release(self, sequence: Sequence, why: str) -> None:
        """See `Slots.release`."""
        self._slots.release(sequence, why)
        self._settle()

    def reprioritise(self, sequence: Sequence) -> None:
        """See `Slots.reprioritise`."""
        self._slots.reprioritise(sequence)

    def processes_ended(self, pids: list[int]) -> None:
        """Nobody comes back for what the driver keeps for these processes."""
        self.work.absences.ended(pids)
        if self.state.name == READY:
            self._life.send(protocol.Ended(pids))

    async def close(self) -> None:
        """Stop the driver; waiting sequences are not answered any more."""
        self._closing = True
        self._keep_alive.stop()
        await self._life.close()

    @property
    def pid(self) -> int | None:
        """The process of the driver."""
        return self._life.pid

    @property
    def restarts(self) -> int:
        """How often its driver died."""
        return self._life.restarts

    def set_policy(self, policy: PolicySettings, cause: str) -> None:
        """See `SlotRules.set_policy`."""
        self.rules.set_policy(policy, cause)
        self._settle()

    # ---- for the residency

    @property
    def cores(self) -> list[int]:
        """The processors of its driver; none for all."""
        return self.loader.cores

    @property
    def takes_memory(self) -> bool:
        """Whether its driver is, or soon will be, in memory."""
        return self._life.present or self.state.load_began is not None

    def start(self) -> None:
        """There is room: load."""
        self.state.load_begins(LOADING, "starting the driver")
        self._life.start(self._load_message)

    def wait(self, reason: str) -> None:
        """There is no room yet, for a reason to show."""
        self.state.set(WAITING, reason)

    def leave(self, why: str) -> None:
        """Give the memory back: what runs is written to disk and goes on when the model is loaded again."""
        ready = self.state.name == READY
        self._keep_alive.stop()
        self.state.turn_ends(why)
        if ready:
            self.work.driver_leaves()
        self._life.run(self._leave(why))

    async def put_aside(self) -> None:
        """The daemon stops: nothing runs any more. Returns when all is written down that its next life may want."""
        if self.state.name == READY:
            self.work.put_aside()
            await self._unloader.written()

    def fail(self, error: LlmosError) -> None:
        """The model cannot run: everything that waits for it gets the error; the next call tries again."""
        log.error("model failed", model=self.name, error=error.message)
        self._residency.forget(self)
        self._keep_alive.stop()
        self.state.failed(error.message)
        self.work.fail(error)
        self._life.stop().add_done_callback(self._stopped)

    def _stopped(self, _: asyncio.Future[None]) -> None:
        """The driver of a model that failed is gone."""
        if not self.takes_memory:
            self.footprint.gone()
        self._residency.review()

    def resize(self, kv_memory: int, cause: str) -> None:
        """From now on the driver has so many bytes for keys and values."""
        log.info("keys and values", model=self.name, before=self.footprint.kv_memory, now=kv_memory, cause=cause)
        self.footprint.kv_memory = kv_memory
        self._life.send(protocol.Resize(kv_memory))

    def look(self) -> None:
        """See whether the driver is silent because all that could run waits for memory."""
        if self.state.name == READY and self._life.silence > STALL:
            self.work.pager.stalled(self._sequences.values())

    def kill(self, why: str) -> None:
        """End the driver for what it does; its sequences go on in another."""
        self._life.kill(why)

    # ---- what the driver does

    def driver_said(self, message: protocol.FromDriver) -> None:
        match message:
            case protocol.Loading():
                share = "" if message.fraction is None else f" {message.fraction:.0%}"
                self.state.set(self.state.name, f"{message.stage}{share}")
                return
            case protocol.Loaded():
                if self.state.name in (LOADING, RESTARTING):
                    self._on_loaded(message)
            case protocol.LoadFailed():
                self.fail(from_wire(message.error))
                return
            case protocol.Bundle(progress=[_, *_]):
                self._life.deaths_in_a_row = 0
                self.work.take(message)
            case _:
                self.work.take(message)
        self._settle()

    def driver_owes(self) -> bool:
        return self.work.owed

    def driver_missing(self, error: LlmosError) -> None:
        self.fail(error)

    def driver_died(self, how: str) -> None:
        """Start another, and let its sequences go on from their tokens so far."""
        if self._closing:
            return
        if how == "signal 9" and (shortage := self._residency.shortage()):
            how = f"signal 9, probably out of memory: {shortage}"
        was, deaths = self.state.name, self._life.deaths_in_a_row
        held = self.work.driver_gone(how)
        log.error("driver died", model=self.name, how=how, sequences=held, restart=self._life.restarts)
        self._keep_alive.stop()
        if was == LEAVING:
            self._unloader.changed.set()
        elif self._life.late_loads >= MAX_LATE_LOADS:
            self.fail(ModelLoadFailed(f"model {self.name}: {how}, {self._life.late_loads} times in a row"))
        elif deaths > MAX_RESTARTS:
            self.fail(DriverFailed(f"the driver of model {self.name} died {deaths} times in a row ({how})"))
        else:
            self.state.load_begins(RESTARTING, f"driver died ({how})")
            self._life.start(self._load_message)

    # ---- inside

    async def _prepare(self) -> None:
        try:
            await self.loader.look()
        except LlmosError as error:
            self.fail(error)
        else:
            self._residency.want(self)

    def _load_message(self) -> protocol.Load:
        self.state.load_began = self._loop.time()
        return self.loader.order(self)

    def _on_loaded(self, message: protocol.Loaded) -> None:
        assert self.state.load_began is not None
        self._life.loaded()
        self._life.run(self.loader.loaded(message, self.pid, self._loop.time() - self.state.load_began))
        if (error := self._residency.too_large(self)) is not None:
            self.fail(error)
            return
        self.state.turn_begins(self.loader.facts)
        self._slots.open()
        self._balance.adapt()

    async def _leave(self, why: str) -> None:
        """What `leave` began."""
        self.state.leave_seconds = await self._unloader.unload()
        self.work.driver_gone("")
        self.footprint.gone()
        self.state.unloaded(why)
        self._settle()
        self._residency.review()

    def _settle(self) -> None:
        """See whether anything is to be done now that something may have changed."""
        self._unloader.changed.set()
        if self.state.name == UNLOADED and self._slots.waiting:
            self.load()
        elif self.state.name == WAITING and not self._slots.waiting:
            self._residency.forget(self)
            self.state.set(UNLOADED, "nobody waits for it any more")
        if self.state.name != READY:
            return
        if self.work.busy:
            self.state.idle_since = None
        elif self.state.idle_since is None:
            self.state.idle_since = self._loop.time()
            self._residency.review()  # which may make it leave
        if self._sequences:
            self._keep_alive.stop()
        elif self.state.ready_at is not None:
            self._keep_alive.start(self.spec.keep_alive)
