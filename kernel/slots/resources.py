"""The resource manager: every model and its runtime, and the system calls that use them.

Its handlers are called by the gate. It decides which runtime serves a call; slots and leases are the runtime's.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, cast

import msgspec
import structlog

from ipc.codec import decoder, encode
from ipc.errors import InvalidPrompt, ModelNotFound, NotEncodable, UnknownModel
from ipc.syscalls import ChatMessage, Generate, ModelInfo, Models, Sampling, SlotInfo, Slots
from kernel.drivers.process import Launcher
from kernel.gate import Gate
from kernel.limits import LimitKeeper
from kernel.process import Process
from kernel.slots.model import ModelSpec, looks_local
from kernel.slots.runtime import ModelRuntime
from kernel.slots.sequence import Sequence
from kernel.slots.slots import SUSPENDED
from kernel.thread import PARK, Thread

Requested = tuple[list[ChatMessage] | str, Sampling]

log = structlog.get_logger("kernel.slots")


class ResourceManager:
    """Serves generations from the models it knows; `default` names the one for calls that name none."""

    def __init__(
        self, models: dict[str, ModelSpec], default: str, cache: Path, launch: Launcher, gate: Gate, limits: LimitKeeper
    ) -> None:
        self._limits = limits
        self._specs = dict(models)
        self._default = default
        self._cache = cache
        self._launch = launch
        self._runtimes: dict[str, ModelRuntime] = {}
        self._last_sequence = 0
        gate.register({Generate: self.generate, Models: self.models, Slots: self.slots})

    def generate(self, process: Process, call: Generate) -> Coroutine[Any, Any, str]:
        self._limits.check_tokens(process)
        runtime = self.runtime(call.model or self._default)
        if not process.is_client:
            _check_request(call)
        return self._generate(process, call, runtime)

    def models(self, process: Process, call: Models) -> list[ModelInfo]:
        return [self.runtime(name).model_info(name == self._default) for name in self._specs]

    def slots(self, process: Process, call: Slots) -> list[SlotInfo]:
        return [runtime.slot_info() for runtime in self._runtimes.values() if runtime.state != "unloaded"]

    def preload(self) -> None:
        """Start loading the default model."""
        self.runtime(self._default).load()

    def runtime(self, name: str) -> ModelRuntime:
        """The runtime of model `name`: a configured one, or a path. Raises `UnknownModel`."""
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
        runtime = self._runtimes[name] = ModelRuntime(name, spec, self._cache, self._launch, self._limits)
        return runtime

    async def _generate(self, process: Process, call: Generate, runtime: ModelRuntime) -> str:
        thread = cast(Thread, asyncio.current_task())
        self._last_sequence += 1
        sampling = _with_defaults(call, runtime.spec)
        sequence = Sequence(self._last_sequence, process, thread, runtime.name, call, sampling)
        if process.sequences is None:
            process.sequences = {}
        process.sequences[sequence] = None
        try:
            runtime.submit(sequence)
            while not sequence.finished:
                thread.waits_for = sequence
                await PARK
        finally:
            process.sequences.pop(sequence, None)
            if not sequence.finished:
                runtime.cancel(sequence)
        if sequence.error is not None:
            raise sequence.error
        if sequence.reason == "length" and call.sampling.max_tokens is None:
            log.warning("reply cut at the default max_tokens", pid=process.pid, tokens=len(sequence.ids))
        return "".join(sequence.text)

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

    async def close(self) -> None:
        """Stop all drivers."""
        await asyncio.gather(*(runtime.close() for runtime in self._runtimes.values()))


def _check_request(call: Generate) -> None:
    """What an agent gives, as the driver will read it: one that cannot would be the driver's end, and of all it runs.

    Raises `InvalidPrompt`.
    """
    try:
        decoder(Requested).decode(encode((call.prompt, call.sampling)))
    except NotEncodable as error:
        raise InvalidPrompt(f"the prompt: {error.message}") from None
    except msgspec.DecodeError as error:
        raise InvalidPrompt(f"a prompt is a text or a list of chat messages: {error}") from None


def _with_defaults(call: Generate, spec: ModelSpec) -> Any:
    """The sampling of `call` with the model's defaults filled in, and a seed of its own if it has none."""
    sampling = call.sampling
    temperature = spec.temperature if sampling.temperature is None else sampling.temperature
    seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
    return msgspec.structs.replace(sampling, temperature=temperature, seed=seed)
