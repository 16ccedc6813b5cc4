"""The resource manager: makes the runtime of each model, samples the machine, and forwards events of processes.

Made by the kernel. It finds the runtime that serves a call. It never decides which models are in memory (the residency
does) or how much memory each may use (the memory balancer does).
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import structlog

from ipc.errors import InvalidPolicy, LimitExceeded, ModelNotFound, UnknownModel
from ipc.syscalls import ModelInfo, Models, PolicyInfo, SetPolicy, SlotInfo, Slots
from kernel.core.process import Process, Thread
from kernel.drivers.process import Launcher
from kernel.drivers.protocol import DISK_RESERVE
from kernel.gate import Gate
from kernel.lib.machine import Machine, MachineSample
from kernel.lib.units import show_size
from kernel.lib.validation import check_text
from kernel.lib.worker_threads import in_thread
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
from kernel.processes.limits import LimitEnforcer
from kernel.programs.origin import without_origin

SAMPLE_SECONDS = 1.0  # between two samples of the machine
MAX_NAME = 4096  # characters of the name or path of a model
MAX_OWNER = 200  # characters of an owner, and of a kind of policy
MOST_MODELS = 1000  # configured, or named by their paths
MOST_WEIGHTS = 10_000

log = structlog.get_logger("kernel.models")


class ResourceManager:
    """Knows the models and makes their runtimes; `default` names the model for calls that name none.

    `cache`: the folder for the files of drivers and for measured sizes. `swap`: the folder for sequences on disk.
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
        limits: LimitEnforcer,
        scheduling: SchedulingSettings,
        settings: ResourceSettings,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._specs = dict(models)
        self._paths: dict[str, None] = {}  # those of `_specs` that a call named by their paths, oldest first
        self._default = default
        self._machine = machine
        self._scheduling = scheduling
        self._settings = settings
        self._runtimes: dict[str, ModelRuntime] = {}
        self.area = SwapArea(swap)
        self._residency = Residency(settings, machine, self._runtimes.values, self._loop)
        self._balancer = MemoryBalancer(self._residency, self._loop)
        sizes = MeasuredSizes(cache / "sizes.json")
        call_log = CallLog(gate)
        self._services = ModelServices(
            cache, launch, limits, self.area, call_log, sizes, machine, self._residency, self._balancer
        )
        self._ended_pids: list[int] = []  # processes whose end is to be reported to the drivers
        self._tasks: list[asyncio.Task[None]] = []
        self.calls = ModelSubsystem(self.runtime, gate, limits)
        self.generate = self.calls.generate
        gate.register({Models: self.models, Slots: self.slots, SetPolicy: self.policy})

    def models(self, process: Process, call: Models) -> list[ModelInfo]:
        """All configured models, and those that were called by path."""
        return [model_info(self.runtime(name), name == self._default) for name in self._specs]

    def slots(self, process: Process, call: Slots) -> list[SlotInfo]:
        return self.slot_rows()

    def slot_rows(self) -> list[SlotInfo]:
        """The slots of each model that was ever used."""
        return [slot_info(runtime, self._machine) for runtime in self._runtimes.values() if runtime.state.ever_used]

    def policy(self, process: Process, call: SetPolicy) -> PolicyInfo:
        """Change those settings of a model's policy that the call gives. Returns all of its settings.

        Raises `InvalidPolicy`.
        """
        runtime = self.runtime(call.model)
        current = runtime.rules.policy
        names = ("kind", "quantum", "aging", "starvation")
        given = {name: value for name in names if (value := getattr(call, name)) is not None}
        if call.kind is not None:
            check_text(call.kind, "the kind of a policy", MAX_OWNER)
        for owner in call.weights:
            check_text(owner, "an owner", MAX_OWNER)
        if len(current.weights | call.weights) > MOST_WEIGHTS:
            raise InvalidPolicy(
                f"weights for {len(current.weights | call.weights)} owners; {MOST_WEIGHTS} are the most"
            )
        if call.weights:
            given["weights"] = current.weights | call.weights
        if given:
            settings = msgspec.structs.replace(current, **given)
            runtime.set_policy(settings, f"requested by client {process.pid} of {process.owner}")
        return policy_info(runtime)

    def set_models(
        self,
        models: dict[str, ModelSpec],
        default: str,
        scheduling: SchedulingSettings,
        settings: ResourceSettings,
    ) -> dict[str, ModelSpec]:
        """Take on changed settings. Returns the models that are in force now.

        A model that was used has a driver for its settings, so only its policy changes. All other models may change,
        and new ones are added. None is removed.
        """
        before = {name: self._scheduling.policy_of(self._specs[name]) for name in self._runtimes}
        for name, spec in models.items():
            self._paths.pop(name, None)
            runtime = self._runtimes.get(name)
            if runtime is not None and runtime.state.ever_used:
                rules = {field: getattr(spec, field) for field in ("policy", "quantum", "weights")}
                self._specs[name] = msgspec.structs.replace(self._specs[name], **rules)
            else:
                self._runtimes.pop(name, None)
                self._specs[name] = spec
        self._default, self._scheduling, self._settings = default, scheduling, settings
        self._residency.set_resources(settings)
        for name, runtime in self._runtimes.items():
            policy = scheduling.policy_of(self._specs[name])
            if policy != before[name]:  # if not, the policy that `llmos policy` has set stays
                runtime.set_policy(policy, "the settings were reloaded")
        return dict(self._specs)

    def preload(self) -> None:
        """Start loading the default model."""
        self.runtime(None).load()

    def runtime(self, name: str | None) -> ModelRuntime:
        """The runtime of model `name`: a configured one, a path, or None for the default. Raises `UnknownModel`."""
        name = name or self._default
        runtime = self._runtimes.get(name)
        if runtime is not None:
            return runtime
        check_text(name, "the name of a model", MAX_NAME)
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
            if len(self._specs) >= MOST_MODELS:
                self._forget_a_path()
            self._specs[name] = spec
            self._paths[name] = None
        policy = self._scheduling.policy_of(spec)
        runtime = self._runtimes[name] = ModelRuntime(name, spec, policy, self._services)
        return runtime

    def _forget_a_path(self) -> None:
        """Forget the oldest model that was named by its path and has neither calls nor a driver."""
        for name in self._paths:
            runtime = self._runtimes.get(name)
            if runtime is None or runtime.forgettable:
                del self._paths[name], self._specs[name]
                self._runtimes.pop(name, None)
                return
        raise LimitExceeded(
            f"the daemon knows {len(self._specs)} models, which is the limit, and all of them are configured or in use",
            limit="models",
            maximum=MOST_MODELS,
            wanted=len(self._specs) + 1,
        )

    # ---- processes

    def suspended(self, process: Process, thread: Thread | None) -> None:
        """Block the sequences of `process`, or only those of its `thread`."""
        for sequence in self.calls.of_process(process):
            if thread is None or sequence.thread is thread:
                self.runtime(sequence.model).block(sequence, SUSPENDED)

    def resumed(self, process: Process, thread: Thread | None) -> None:
        """Undo `suspended`, except for sequences of a process or thread that is still suspended."""
        for sequence in self.calls.of_process(process):
            if not process.suspended and not sequence.thread.suspended:
                self.runtime(sequence.model).unblock(sequence, SUSPENDED)

    def priority_set(self, process: Process, thread: Thread | None) -> None:
        """The priority of `process`, or only of its `thread`, has changed."""
        for sequence in self.calls.of_process(process):
            if thread is None or sequence.thread is thread:
                self.runtime(sequence.model).active.leases.reprioritise(sequence)

    def priority_changed(self, process: Process) -> None:
        """The priority that `process` inherits from its callers has changed."""
        self.priority_set(process, None)

    def process_ended(self, process: Process) -> None:
        """Report the end to the drivers: one message for all processes that end in this iteration of the loop."""
        if process.generations:
            if not self._ended_pids:
                self._loop.call_soon(self._report_ended)
            self._ended_pids.append(process.pid)

    def _report_ended(self) -> None:
        ended, self._ended_pids = self._ended_pids, []
        for runtime in self._runtimes.values():
            runtime.processes_ended(ended)

    # ---- the machine

    @property
    def sample(self) -> MachineSample:
        """The last sample of the machine."""
        return self._residency.sample

    @property
    def scheduling(self) -> dict[str, str]:
        """The policy and the slot limit of each model in use, with their reasons."""
        return {name: scheduling(runtime) for name, runtime in self._runtimes.items() if runtime.state.ever_used}

    @property
    def drivers_memory(self) -> int:
        """Bytes of memory that all drivers together take."""
        return sum(runtime.footprint.rss for runtime in self._runtimes.values())

    @property
    def drivers_budget(self) -> int:
        """Bytes of memory that all drivers together may take now."""
        return self._residency.budget

    def start(self) -> None:
        """Start to sample the machine, and remove the swap files of dead daemons."""
        # Not create_task: the loop's task factory would make these threads of the agent whose call led here.
        self._tasks = [
            asyncio.Task(coro, loop=self._loop, context=without_origin())
            for coro in (self._watch(), self._remove_old())
        ]

    def observe(self, sample: MachineSample) -> None:
        """Act on a sample of the machine.

        Helps silent drivers, kills leaking ones, adapts KV memory and slot limits, and loads waiting models.
        """
        self._residency.observe(sample)
        self.area.full = sample.disk_free < DISK_RESERVE
        for runtime in self._runtimes.values():
            runtime.poll()
            footprint = runtime.footprint
            bound = footprint.maximum + self._settings.leak_margin
            if runtime.state.ready_at is not None and footprint.rss > bound:
                runtime.kill(f"leaks memory: takes {show_size(footprint.rss)}, and may take {show_size(bound)} at most")
        self._balancer.adapt()
        self._residency.reschedule()

    async def _watch(self) -> None:
        while True:
            pids = [runtime.pid for runtime in self._runtimes.values() if runtime.pid is not None]
            try:
                self.observe(await in_thread(self._machine.sample, pids))
            except Exception:
                log.exception("cannot sample the machine")
            await asyncio.sleep(SAMPLE_SECONDS)

    async def _remove_old(self) -> None:
        await in_thread(self.area.remove_old)

    async def checkpoint_to_disk(self) -> None:
        """Have the drivers of all models write the KV of durable calls to disk: see `ModelRuntime`."""
        await asyncio.gather(*(runtime.checkpoint_to_disk() for runtime in self._runtimes.values()))

    async def close(self) -> None:
        """Stop all drivers."""
        for task in self._tasks:
            task.cancel()
        self._residency.close()
        await asyncio.gather(*(runtime.close() for runtime in self._runtimes.values()))
        await self.area.close()
