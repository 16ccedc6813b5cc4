"""The resource manager: every model and its runtime, the machine they share, and what happens to processes.

Made by the kernel. It samples the machine and tells the others: which model serves a call is said here, which are in
memory by the residency, what each may use by the balance.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import structlog

from ipc.errors import ModelNotFound, UnknownModel
from ipc.syscalls import ModelInfo, Models, PolicyInfo, SetPolicy, SlotInfo, Slots
from kernel.core.process import Process, Thread
from kernel.dispatch.priority_inheritance import behind
from kernel.drivers.process import Launcher
from kernel.drivers.protocol import DISK_RESERVE
from kernel.gate import Gate
from kernel.lib.machine import Machine, MachineSample
from kernel.lib.units import show_size
from kernel.models.call_log import CallLog
from kernel.models.calls import ModelSubsystem
from kernel.models.footprint import MeasuredSizes
from kernel.models.leases import SUSPENDED
from kernel.models.listing import model_info, policy_info, scheduling, slot_info
from kernel.models.memory_balancer import MemoryBalancer
from kernel.models.residency import Residency
from kernel.models.runtime import ModelRuntime
from kernel.models.services import ModelServices
from kernel.models.settings import ResourceSettings, SchedulingSettings
from kernel.models.spec import ModelSpec, looks_local
from kernel.models.swap import SwapArea
from kernel.processes.limits import LimitKeeper

SAMPLE_SECONDS = 1.0  # between two looks at the machine

log = structlog.get_logger("kernel.models")


class ResourceManager:
    """Knows the models and makes their runtimes; `default` names the one for calls that name none.

    `cache` is for drivers and for what was measured of them, `swap` for sequences on disk.
    """

    def __init__(
        self,
        models: dict[str, ModelSpec],
        default: str,
        cache: Path,
        swap: Path,
        launch: Launcher,
        machine: Machine,
        gate: Gate,
        limits: LimitKeeper,
        scheduling: SchedulingSettings,
        settings: ResourceSettings,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._specs = dict(models)
        self._default = default
        self._machine = machine
        self._scheduling = scheduling
        self._settings = settings
        self._runtimes: dict[str, ModelRuntime] = {}
        self.area = SwapArea(swap)
        self._residency = Residency(settings, machine, self._runtimes.values, self._loop)
        self._balance = MemoryBalancer(self._residency, self._loop)
        book = MeasuredSizes(cache / "sizes.json")
        finished = CallLog(gate)
        self._services = ModelServices(
            cache, launch, limits, self.area, finished, book, machine, self._residency, self._balance
        )
        self._ended: list[int] = []  # processes whose end the drivers have not been told
        self._tasks: list[asyncio.Task[None]] = []
        self.calls = ModelSubsystem(self.runtime, gate, limits)
        self.generate = self.calls.generate
        gate.register({Models: self.models, Slots: self.slots, SetPolicy: self.policy})

    def models(self, process: Process, call: Models) -> list[ModelInfo]:
        return [model_info(self.runtime(name), name == self._default) for name in self._specs]

    def slots(self, process: Process, call: Slots) -> list[SlotInfo]:
        return [slot_info(runtime, self._machine) for runtime in self._runtimes.values() if runtime.state.used]

    def policy(self, process: Process, call: SetPolicy) -> PolicyInfo:
        runtime = self.runtime(call.model)
        current = runtime.rules.policy
        names = ("kind", "quantum", "aging", "starvation")
        given = {name: value for name in names if (value := getattr(call, name)) is not None}
        if call.weights:
            given["weights"] = current.weights | call.weights
        if given:
            settings = msgspec.structs.replace(current, **given)
            runtime.set_policy(settings, f"asked for by client {process.pid} of {process.owner}")
        return policy_info(runtime)

    def preload(self) -> None:
        """Start loading the default model."""
        self.runtime(None).load()

    def runtime(self, name: str | None) -> ModelRuntime:
        """The runtime of model `name`: a configured one, a path, or None for the default. Raises `UnknownModel`."""
        name = name or self._default
        runtime = self._runtimes.get(name)
        if runtime is not None:
            return runtime
        spec = self._specs.get(name)
        if spec is None:
            if not looks_local(name):
                known = ", ".join(self._specs)
                raise UnknownModel(
                    f"no model {name!r}; configured: {known}. A path such as ./{name} works too", model=name
                )
            spec = ModelSpec(path=name)
            if spec.missing_path() is not None:
                raise ModelNotFound(f"no model at {spec.missing_path()}", path=name)
            self._specs[name] = spec
        policy = self._scheduling.policy_of(spec)
        runtime = self._runtimes[name] = ModelRuntime(name, spec, policy, self._services)
        return runtime

    # ---- processes

    def suspended(self, process: Process, thread: Thread | None) -> None:
        """Take the sequences of `process`, or of its `thread` alone, off their slots."""
        for sequence in self.calls.of_process(process):
            if thread is None or sequence.thread is thread:
                self.runtime(sequence.model).hold(sequence, SUSPENDED)

    def resumed(self, process: Process, thread: Thread | None) -> None:
        """Undo `suspended`, for the sequences that nothing else holds."""
        for sequence in self.calls.of_process(process):
            if not process.suspended and not sequence.thread.suspended:
                self.runtime(sequence.model).release(sequence, SUSPENDED)

    def ranked(self, process: Process, thread: Thread | None) -> None:
        """The priority of `process`, or of its `thread` alone, has changed."""
        for sequence in self.calls.of_process(process):
            if thread is None or sequence.thread is thread:
                self.runtime(sequence.model).reprioritise(sequence)

    def priority_changed(self, process: Process) -> None:
        """More, or less, urgent ones wait for `process` than before."""
        for one in behind(process):
            self.ranked(one, None)

    def process_ended(self, process: Process) -> None:
        """Tell the drivers, together with all that end in this turn of the loop."""
        if process.generations:
            if not self._ended:
                self._loop.call_soon(self._tell_ended)
            self._ended.append(process.pid)

    def _tell_ended(self) -> None:
        ended, self._ended = self._ended, []
        for runtime in self._runtimes.values():
            runtime.processes_ended(ended)

    # ---- the machine

    @property
    def sample(self) -> MachineSample:
        """The last look at the machine."""
        return self._residency.sample

    @property
    def scheduling(self) -> dict[str, str]:
        """How the slots of each model in use are given, and why so."""
        return {name: scheduling(runtime) for name, runtime in self._runtimes.items() if runtime.state.used}

    @property
    def drivers_memory(self) -> int:
        """Bytes that all drivers take."""
        return sum(runtime.footprint.rss for runtime in self._runtimes.values())

    @property
    def drivers_budget(self) -> int:
        """Bytes that all drivers together may take now."""
        return self._residency.budget

    def start(self) -> None:
        """Look at the machine from time to time, and remove what dead daemons left on disk."""
        # asyncio.Task: these are the kernel's own.
        self._tasks = [asyncio.Task(coro, loop=self._loop) for coro in (self._watch(), self._remove_old())]

    def observe(self, sample: MachineSample) -> None:
        """Act upon a look at the machine."""
        self._residency.observe(sample)
        self.area.full = sample.disk_free < DISK_RESERVE
        for runtime in self._runtimes.values():
            runtime.poll()
            footprint = runtime.footprint
            bound = footprint.most + self._settings.leak_margin
            if runtime.state.ready_at is not None and footprint.rss > bound:
                runtime.kill(f"leaks memory: takes {show_size(footprint.rss)}, of {show_size(bound)} at most")
        self._balance.adapt()
        self._residency.reschedule()

    async def _watch(self) -> None:
        while True:
            pids = [runtime.pid for runtime in self._runtimes.values() if runtime.pid is not None]
            try:
                self.observe(await asyncio.to_thread(self._machine.sample, pids))
            except Exception:
                log.exception("the machine cannot be looked at")
            await asyncio.sleep(SAMPLE_SECONDS)

    async def _remove_old(self) -> None:
        await asyncio.to_thread(self.area.remove_old)

    async def checkpoint_to_disk(self) -> None:
        """See `ModelRuntime.checkpoint_to_disk`: that of all models."""
        await asyncio.gather(*(runtime.checkpoint_to_disk() for runtime in self._runtimes.values()))

    async def close(self) -> None:
        """Stop all drivers."""
        for task in self._tasks:
            task.cancel()
        self._residency.close()
        await asyncio.gather(*(runtime.close() for runtime in self._runtimes.values()))
        await self.area.close()
