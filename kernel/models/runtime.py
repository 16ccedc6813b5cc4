"""The runtime of one model: connects its active sequences, its state and its driver, and loads and unloads it.

Used by `calls.py`, `manager.py`, `residency.py` and `memory_balancer.py`; `driver_supervisor.py` reports to it. Each
sequence that it accepts ends: with a result, with an `LlmosError`, or cancelled. It never blocks the loop.
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
from kernel.models.state import FAILED, LOADING, READY, RESTARTING, UNLOADED, UNLOADING, WAITING, ModelState
from kernel.models.unloader import Unloader
from kernel.policy.registry import PolicySettings, make_policy

MAX_QUEUE = 100_000  # calls that may wait for a slot
MAX_RESTARTS = 5  # the model fails after more driver deaths in a row than this, without a token in between
MAX_LATE_LOADS = 2  # the model fails after so many loads in a row that exceeded `load_timeout`
STALL = 0.9  # seconds of silence after which the driver is assumed to have no KV memory for the sequences on slots

log = structlog.get_logger("kernel.models")


class ModelRuntime:
    """One model. `active` holds its sequences and slots, `state` says whether it is loaded, and since when."""

    def __init__(self, name: str, spec: ModelSpec, policy: PolicySettings, services: ModelServices) -> None:
        self.name = name
        self.spec = spec
        self.residency = self._residency = services.residency
        self._balancer = services.memory_balancer
        self._loop = asyncio.get_running_loop()
        self.loader = Loader(name, spec, services)
        self.footprint = self.loader.footprint
        self._driver = DriverSupervisor(name, spec, services.launch, self._loop, self)
        self.active = ActiveSequences(
            name,
            spec,
            make_policy(policy),
            services.limits,
            services.swap_area,
            services.call_log,
            self.footprint,
            self._loop.time,
            self._driver.ask,
        )
        self._leases = self.active.leases
        self.rules = SlotRules(name, policy, self._leases)
        # These callbacks are set here, not in `Kernel._connect`, because a runtime may be made at any time.
        self._leases.on_shed = self.active.shed
        self._leases.on_reader_caught_up = self.unblock
        self._leases.on_policy_changed = self.rules.policy_changed
        self._sequences = self.active.sequences
        self.state = ModelState(name, self._sequences, self._loop.time)
        self._unloader = Unloader(name, self.active, self._driver, self._loop.time)
        unused = f"not used for {spec.keep_alive:g} s"
        self._keep_alive = RestartableTimer(self._loop, lambda: self.unload(unused))
        self._closing = False

    # ---- for `calls.py` and the resource manager

    def submit(self, sequence: Sequence) -> None:
        """Queue a new sequence, and load the model if it is not in memory. Raises `Busy` when the queue is full."""
        waiting = self._leases.waiting
        if waiting >= MAX_QUEUE:
            raise Busy(f"{waiting} calls wait for model {self.name}, which is the limit", retry_after=5.0)
        self.active.add(sequence)
        self.load()
        self._update()
        self.state.show(sequence)

    def load(self) -> None:
        """Load the model as soon as there is room. Does nothing if it is loaded, or if a load was requested already."""
        if self.state.name in (UNLOADED, FAILED) and not self._closing:
            self.state.set(LOADING, "checking its requirements")
            self._driver.run(self._check_and_request_load())

    def cancel(self, sequence: Sequence) -> None:
        """Cancel `sequence`, whose caller no longer waits for it."""
        self.active.cancel(sequence)
        self._update()

    def block(self, sequence: Sequence, why: str) -> None:
        """See `LeaseTable.block`."""
        self._leases.block(sequence, why)
        self._update()

    def unblock(self, sequence: Sequence, why: str) -> None:
        """See `LeaseTable.unblock`."""
        self._leases.unblock(sequence, why)
        self._update()

    def processes_ended(self, pids: list[int]) -> None:
        """These processes have ended: the driver need not preserve their prefixes."""
        self.active.think_times.processes_ended(pids)
        if self.state.name == READY:
            self._driver.send(protocol.Ended(pids))

    async def close(self) -> None:
        """Stop the driver. Call this when all processes have ended, and with them the sequences."""
        self._closing = True
        self._keep_alive.stop()
        await self._driver.close()

    @property
    def pid(self) -> int | None:
        """The process id of the driver, None while there is none."""
        return self._driver.pid

    @property
    def restarts(self) -> int:
        """How many drivers died."""
        return self._driver.restarts

    @property
    def forgettable(self) -> bool:
        """Whether nothing is lost if a new runtime takes the place of this one: it has no calls and no driver."""
        return self.state.name in (UNLOADED, FAILED) and not self._sequences and not self.takes_memory

    def set_policy(self, policy: PolicySettings, cause: str) -> None:
        """See `SlotRules.set_policy`."""
        self.rules.set_policy(policy, cause)
        self._update()

    # ---- for the residency

    @property
    def cores(self) -> list[int]:
        """The processors of the driver; empty for all."""
        return self.loader.cores

    @property
    def takes_memory(self) -> bool:
        """Whether a driver is, or soon will be, in memory."""
        return self._driver.in_memory or self.state.load_began is not None

    @property
    def priority(self) -> int | None:
        """The highest priority of the calls that run or wait for a slot; None if there is no such call."""
        return self.active.priority

    def start_load(self) -> None:
        """There is room: start a driver."""
        self.state.load_begins(LOADING, "starting the driver")
        self._driver.start(self._load_message)

    def wait_for_memory(self, reason: str) -> None:
        """There is no room yet; show `reason` to the callers that wait."""
        self.state.set(WAITING, reason)

    def unload(self, why: str) -> None:
        """Swap out the sequences and stop the driver. The sequences go on when the model is loaded again."""
        ready = self.state.name == READY
        self._keep_alive.stop()
        self.state.turn_ends(why)
        if ready:
            self.active.swap_out_all()
        self._driver.run(self._unload(why))

    async def checkpoint_to_disk(self) -> None:
        """The daemon stops: preempt all generations, and have the driver write those of durable calls to disk.

        Returns when the driver has done so.
        """
        if self.state.name == READY:
            self.active.checkpoint_to_disk()
            await self._unloader.await_swap_outs()

    def fail(self, error: LlmosError) -> None:
        """The model cannot run: end all calls that wait for it with `error`. The next call tries again."""
        log.error("model failed", model=self.name, error=error.message)
        self._residency.withdraw_request(self)
        self._keep_alive.stop()
        self.state.failed(error.message)
        self.active.fail(error)
        self._driver.stop().add_done_callback(self._stopped)

    def _stopped(self, _: asyncio.Future[None]) -> None:
        """The driver of a model that failed has ended."""
        if not self.takes_memory:
            self.footprint.driver_ended()
        self._residency.reschedule()

    def resize(self, kv_memory: int, cause: str) -> None:
        """Set the KV memory of the driver to `kv_memory` bytes."""
        log.info("KV memory changed", model=self.name, before=self.footprint.kv_memory, now=kv_memory, cause=cause)
        self.footprint.kv_memory = kv_memory
        self._driver.send(protocol.Resize(kv_memory))

    def poll(self) -> None:
        """If the driver is silent, let the pager swap out: perhaps the sequences on slots wait for KV memory."""
        if self.state.name == READY and self._driver.silence > STALL:
            self.active.pager.stalled(self._sequences.values())

    def kill(self, why: str) -> None:
        """Kill the driver for the fault `why`, which is logged. Its sequences go on in another driver."""
        self._driver.kill(why)

    # ---- for the driver supervisor

    def driver_reported(self, message: protocol.FromDriver) -> None:
        """Handle a message of the driver: those about the load here, those about sequences in `active`."""
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
                self.active.handle(message)
            case _:
                self.active.handle(message)
        self._update()

    def awaiting_reply(self) -> bool:
        return self.active.awaiting_driver

    def driver_not_started(self, error: LlmosError) -> None:
        self.fail(error)

    def driver_died(self, how: str) -> None:
        """Start another driver, in which the sequences go on from their last tokens. After too many deaths, fail."""
        if self._closing:
            return
        if how == "signal 9" and (shortage := self._residency.shortage()):
            how = f"signal 9, probably out of memory: {shortage}"
        was, deaths = self.state.name, self._driver.deaths_in_a_row
        held = self.active.driver_ended(how)
        log.error("driver died", model=self.name, how=how, sequences=held, restart=self._driver.restarts)
        self._keep_alive.stop()
        if was == UNLOADING:
            self._unloader.changed.set()
        elif self._driver.late_loads >= MAX_LATE_LOADS:
            self.fail(ModelLoadFailed(f"model {self.name}: {how}, {self._driver.late_loads} times in a row"))
        elif deaths > MAX_RESTARTS:
            self.fail(DriverFailed(f"the driver of model {self.name} died {deaths} times in a row ({how})"))
        else:
            self.state.load_begins(RESTARTING, f"driver died ({how})")
            self._driver.start(self._load_message)

    # ---- inside

    async def _check_and_request_load(self) -> None:
        try:
            await self.loader.check()
        except LlmosError as error:
            self.fail(error)
        else:
            self._residency.request_load(self)

    def _load_message(self) -> protocol.Load:
        self.state.load_began = self._loop.time()
        return self.loader.load_message(self)

    def _on_loaded(self, message: protocol.Loaded) -> None:
        assert self.state.load_began is not None
        self._driver.loaded()
        self._driver.run(self.loader.loaded(message, self.pid, self._loop.time() - self.state.load_began))
        if (error := self._residency.too_large(self)) is not None:
            self.fail(error)
            return
        self.state.turn_begins(self.loader.facts)
        self.active.loaded(message.identity)
        self._leases.open()
        self._balancer.adapt()

    async def _unload(self, why: str) -> None:
        """Finish `unload` once the driver has ended."""
        self.state.unload_seconds = await self._unloader.unload()
        self.active.driver_ended("")
        self.footprint.driver_ended()
        self.state.unloaded(why)
        self._update()
        self._residency.reschedule()

    def _update(self) -> None:
        """Act on the latest change: request a load or withdraw the request, and track whether the model is idle."""
        self._unloader.changed.set()
        if self.state.name == UNLOADED and self._leases.waiting:
            self.load()
        elif self.state.name == WAITING and not self._leases.waiting:
            self._residency.withdraw_request(self)
            self.state.set(UNLOADED, "no call waits for it any more")
        if self.state.name != READY:
            return
        if self.active.busy:
            if self.state.idle_since is not None:
                self.state.becomes_busy()
        elif self.state.idle_since is None:
            self.state.becomes_idle()
            self._residency.reschedule()  # which may unload this model
        if self._sequences:
            self._keep_alive.stop()
        elif self.state.ready_at is not None:
            self._keep_alive.start(self.spec.keep_alive)
