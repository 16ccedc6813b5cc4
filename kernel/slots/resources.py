"""The resource manager: every model and its runtime, and who of them is told what happens to processes.

Made by the kernel. It decides which runtime serves a call; slots and leases are the runtime's.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from ipc.errors import ModelNotFound, UnknownModel
from ipc.syscalls import ModelInfo, Models, SlotInfo, Slots
from kernel.drivers.process import Launcher
from kernel.gate import Gate
from kernel.limits import LimitKeeper
from kernel.policy.priority import PriorityWithAging
from kernel.process import Process
from kernel.scheduling import Scheduling
from kernel.slots.calls import ModelCalls
from kernel.slots.model import ModelSpec, looks_local
from kernel.slots.runtime import ModelRuntime
from kernel.slots.slots import SUSPENDED
from kernel.thread import Thread


class ResourceManager:
    """Knows the models and makes their runtimes; `default` names the one for calls that name none."""

    def __init__(
        self,
        models: dict[str, ModelSpec],
        default: str,
        cache: Path,
        launch: Launcher,
        gate: Gate,
        limits: LimitKeeper,
        scheduling: Scheduling,
    ) -> None:
        self._limits = limits
        self._scheduling = scheduling
        self._specs = dict(models)
        self._default = default
        self._cache = cache
        self._launch = launch
        self._runtimes: dict[str, ModelRuntime] = {}
        ModelCalls(self.runtime, gate, limits)
        gate.register({Models: self.models, Slots: self.slots})

    def models(self, process: Process, call: Models) -> list[ModelInfo]:
        return [self.runtime(name).model_info(name == self._default) for name in self._specs]

    def slots(self, process: Process, call: Slots) -> list[SlotInfo]:
        return [runtime.slot_info() for runtime in self._runtimes.values() if runtime.state != "unloaded"]

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
        policy = PriorityWithAging(self._scheduling.aging, self._scheduling.quantum)
        runtime = self._runtimes[name] = ModelRuntime(name, spec, self._cache, self._launch, self._limits, policy)
        return runtime

    def suspended(self, process: Process, thread: Thread | None) -> None:
        """Take the sequences of `process`, or of its `thread` alone, off their slots."""
        for sequence in process.sequences or ():
            if thread is None or sequence.thread is thread:
                self.runtime(sequence.model).hold(sequence, SUSPENDED)

    def resumed(self, process: Process, thread: Thread | None) -> None:
        """Undo `suspended`, for the sequences that nothing else holds."""
        for sequence in process.sequences or ():
            if not process.suspended and not sequence.thread.suspended:
                self.runtime(sequence.model).release(sequence, SUSPENDED)

    def ranked(self, process: Process, thread: Thread | None) -> None:
        """The priority of `process`, or of its `thread` alone, has changed."""
        for sequence in process.sequences or ():
            if thread is None or sequence.thread is thread:
                self.runtime(sequence.model).reprioritise(sequence)

    async def close(self) -> None:
        """Stop all drivers."""
        await asyncio.gather(*(runtime.close() for runtime in self._runtimes.values()))
