"""A model runtime: one model, its workload, and its driver, which is loaded, unloaded and replaced.

Called by the model calls, the resource manager and the residency; the driver's life reports to it. It never blocks the
loop, and each sequence that it takes ends: with its result, with a named error, or cancelled.
"""

from __future__ import annotations

import asyncio

import structlog

from ipc.errors import Busy, DriverFailed, LlmosError, ModelLoadFailed, from_wire
from kernel.drivers import protocol
from kernel.lib.restartable_timer import RestartableTimer
from kernel.models.active_sequences import ActiveSequences
from kernel.models.driver_supervisor import DriverSupervisor
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
        self._driver = DriverSupervisor(name, spec, services.launch, self._loop, self)
        self.active = ActiveSequences(
            name,
            spec,
            make(policy),
            services.limits,
            services.area,
            services.finished,
            self.footprint,
            self._loop.time,
            self._driver.ask,
        )
        self._leases = self.active.leases
        self.rules = SlotRules(name, policy, self._leases)
        # The hooks of the slots, all set here. Each has one listener, so their order does not matter.
        self._leases.on_shed = self.active.shed
        self._leases.on_relief = self.release
        self._leases.on_reason = self.rules.policy_changed
        self._sequences = self.active.sequences
        self.state = ModelState(name, self._sequences, self._loop.time)
        self._unloader = Unloader(name, self.active, self._driver, self._loop.time)
        unused = f"nobody used it for {spec.keep_alive:g} s"
        self._keep_alive = RestartableTimer(self._loop, lambda: self.leave(unused))
        self._closing = False

    # ---- for the model calls and the resource manager

    def submit(self, sequence: Sequence) -> None:
        """Queue a new sequence; loads the model if need be. Raises `Busy` when the queue is full."""
        waiting = self._leases.waiting
        if waiting >= MAX_QUEUE:
            raise Busy(f"{waiting} calls wait for model {self.name}, which is the limit", retry_after=5.0)
        self.active.add(sequence)
        self.load()
        self._settle()
        self.state.show(sequence)

    def load(self) -> None:
        """Load the model as soon as there is room, unless it is loaded or loading."""
        if self.state.name in (UNLOADED, FAILED) and not self._closing:
            self.state.set(LOADING, "looking at what it needs")
            self._driver.run(self._prepare())

    def cancel(self, sequence: Sequence) -> None:
        """The caller no longer wants it."""
        self.active.cancel(sequence)
        self._settle()

    def hold(self, sequence: Sequence, why: str) -> None:
        """See `Slots.hold`."""
        self._leases.block(sequence, why)
        self._settle()

    def release(self, sequence: Sequence, why: str) -> None:
        """See `Slots.release`."""
        self._leases.unblock(sequence, why)
        self._settle()

    def reprioritise(self, sequence: Sequence) -> None:
        """See `Slots.reprioritise`."""
        self._leases.reprioritise(sequence)

    def processes_ended(self, pids: list[int]) -> None:
        """Nobody comes back for what the driver keeps for these processes."""
        self.active.think_times.ended(pids)
        if self.state.name == READY:
            self._driver.send(protocol.Ended(pids))

    async def close(self) -> None:
        """Stop the driver; waiting sequences are not answered any more."""
        self._closing = True
        self._keep_alive.stop()
        await self._driver.close()

    @property
    def pid(self) -> int | None:
        """The process of the driver."""
        return self._driver.pid

    @property
    def restarts(self) -> int:
        """How often its driver died."""
        return self._driver.restarts

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
        return self._driver.present or self.state.load_began is not None

    def start(self) -> None:
        """There is room: load."""
        self.state.load_begins(LOADING, "starting the driver")
        self._driver.start(self._load_message)

    def wait(self, reason: str) -> None:
        """There is no room yet, for a reason to show."""
        self.state.set(WAITING, reason)

    def leave(self, why: str) -> None:
        """Give the memory back: what runs is written to disk and goes on when the model is loaded again."""
        ready = self.state.name == READY
        self._keep_alive.stop()
        self.state.turn_ends(why)
        if ready:
            self.active.driver_leaves()
        self._driver.run(self._leave(why))

    async def checkpoint_to_disk(self) -> None:
        """The daemon stops: nothing runs any more. Returns when all is written down that its next life may want."""
        if self.state.name == READY:
            self.active.checkpoint_to_disk()
            await self._unloader.written()

    def fail(self, error: LlmosError) -> None:
        """The model cannot run: everything that waits for it gets the error; the next call tries again."""
        log.error("model failed", model=self.name, error=error.message)
        self._residency.forget(self)
        self._keep_alive.stop()
        self.state.failed(error.message)
        self.active.fail(error)
        self._driver.stop().add_done_callback(self._stopped)

    def _stopped(self, _: asyncio.Future[None]) -> None:
        """The driver of a model that failed is gone."""
        if not self.takes_memory:
            self.footprint.gone()
        self._residency.reschedule()

    def resize(self, kv_memory: int, cause: str) -> None:
        """From now on the driver has so many bytes for keys and values."""
        log.info("keys and values", model=self.name, before=self.footprint.kv_memory, now=kv_memory, cause=cause)
        self.footprint.kv_memory = kv_memory
        self._driver.send(protocol.Resize(kv_memory))

    def poll(self) -> None:
        """See whether the driver is silent because all that could run waits for memory."""
        if self.state.name == READY and self._driver.silence > STALL:
            self.active.pager.stalled(self._sequences.values())

    def kill(self, why: str) -> None:
        """End the driver for what it does; its sequences go on in another."""
        self._driver.kill(why)

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
                self._driver.deaths_in_a_row = 0
                self.active.take(message)
            case _:
                self.active.take(message)
        self._settle()

    def awaiting_reply(self) -> bool:
        return self.active.awaiting_driver

    def driver_missing(self, error: LlmosError) -> None:
        self.fail(error)

    def driver_died(self, how: str) -> None:
        """Start another, and let its sequences go on from their tokens so far."""
        if self._closing:
            return
        if how == "signal 9" and (shortage := self._residency.shortage()):
            how = f"signal 9, probably out of memory: {shortage}"
        was, deaths = self.state.name, self._driver.deaths_in_a_row
        held = self.active.driver_gone(how)
        log.error("driver died", model=self.name, how=how, sequences=held, restart=self._driver.restarts)
        self._keep_alive.stop()
        if was == LEAVING:
            self._unloader.changed.set()
        elif self._driver.late_loads >= MAX_LATE_LOADS:
            self.fail(ModelLoadFailed(f"model {self.name}: {how}, {self._driver.late_loads} times in a row"))
        elif deaths > MAX_RESTARTS:
            self.fail(DriverFailed(f"the driver of model {self.name} died {deaths} times in a row ({how})"))
        else:
            self.state.load_begins(RESTARTING, f"driver died ({how})")
            self._driver.start(self._load_message)

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
        self._driver.loaded()
        self._driver.run(self.loader.loaded(message, self.pid, self._loop.time() - self.state.load_began))
        if (error := self._residency.too_large(self)) is not None:
            self.fail(error)
            return
        self.state.turn_begins(self.loader.facts)
        self._leases.open()
        self._balance.adapt()

    async def _leave(self, why: str) -> None:
        """What `leave` began."""
        self.state.leave_seconds = await self._unloader.unload()
        self.active.driver_gone("")
        self.footprint.gone()
        self.state.unloaded(why)
        self._settle()
        self._residency.reschedule()

    def _settle(self) -> None:
        """See whether anything is to be done now that something may have changed."""
        self._unloader.changed.set()
        if self.state.name == UNLOADED and self._leases.waiting:
            self.load()
        elif self.state.name == WAITING and not self._leases.waiting:
            self._residency.forget(self)
            self.state.set(UNLOADED, "nobody waits for it any more")
        if self.state.name != READY:
            return
        if self.active.busy:
            self.state.idle_since = None
        elif self.state.idle_since is None:
            self.state.idle_since = self._loop.time()
            self._residency.reschedule()  # which may make it leave
        if self._sequences:
            self._keep_alive.stop()
        elif self.state.ready_at is not None:
            self._keep_alive.start(self.spec.keep_alive)
