"""The simulated driver: a device with a stated cost model and no language model. Its words are made up from numbers.

Started by the kernel as a process, or run by tests on their own loop and clock. One step costs
`step_seconds + sequence_seconds * sequences + prompt_seconds * prompt tokens of those that join`; a prompt's tokens
are its words. It serves tests and capacity planning, and never pretends to understand a prompt.
"""

from __future__ import annotations

import asyncio
import hashlib
import signal
import socket
import sys
from collections.abc import Callable
from typing import Annotated

import msgspec
from msgspec import Meta

from ipc.codec import ENCODER, decode
from ipc.errors import ConfigError, ContextOverflow, InvalidPrompt, LlmosError, to_wire
from ipc.syscalls import ChatMessage, Sampling
from ipc.transport import FramedProtocol
from kernel.drivers import protocol
from kernel.drivers.child import die_with_parent

Cost = Annotated[float, Meta(ge=0)]


class CostModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Seconds that a device takes, and the context it offers in tokens."""

    step_seconds: Cost = 0.002
    sequence_seconds: Cost = 0.0001
    prompt_seconds: Cost = 0.00001
    load_seconds: Cost = 0.0
    reply_tokens: Annotated[int, Meta(ge=1)] = 32
    context: Annotated[int, Meta(ge=1)] = 8192


class SimulatedSequence:
    """A generation of the simulated device: numbered words, a function of the seed and the position alone."""

    def __init__(self, admit: protocol.Admit, prompt_ids: list[int], max_tokens: int) -> None:
        self.id = admit.sequence
        self.prompt_ids = prompt_ids
        self.made = len(admit.generated)
        self.lease = admit.lease
        self.max_tokens = max_tokens
        self.seed = admit.sampling.seed or 0
        self.joins = True

    def next(self) -> protocol.Progress:
        token, text = simulated_token(self.seed, self.made)
        self.made += 1
        self.lease -= 1
        return protocol.Progress(self.id, [token], text)


def simulated_token(seed: int, position: int) -> tuple[int, str]:
    """The token at `position`: an id below 50,000 and its text, such as "s1234 "."""
    digest = hashlib.blake2b(f"{seed}:{position}".encode(), digest_size=4).digest()
    token = int.from_bytes(digest, "little") % 50_000
    return token, f"s{token} "


class SimulatedDevice:
    """The step loop. `send` reports to the kernel; time passes only in `asyncio.sleep`, so a test's clock drives it."""

    def __init__(self, send: Callable[[protocol.FromDriver], None]) -> None:
        self._send = send
        self._costs = CostModel()
        self._max_tokens = 1
        self._sequences: dict[int, SimulatedSequence] = {}
        self._work = asyncio.Event()

    def handle(self, message: protocol.ToDriver) -> None:
        """Take a message of the kernel; it has effect before the next step."""
        match message:
            case protocol.Load():
                self._load(message)
            case protocol.Admit():
                self._admit(message)
            case protocol.Renew(sequence=number, tokens=tokens):
                if number in self._sequences:
                    self._sequences[number].lease += tokens
            case protocol.Revoke(sequence=number):
                if number in self._sequences:
                    self._sequences[number].lease = 0
                    self._send(protocol.Parked(number))
            case protocol.Cancel(sequence=number):
                if self._sequences.pop(number, None) is not None:
                    self._send(protocol.Done(number, "cancelled"))
            case protocol.Stop():
                raise SystemExit(0)
        self._work.set()

    async def run(self) -> None:
        """Step for ever: wait for work, let the time of a step pass, report it."""
        while True:
            batch = [sequence for sequence in self._sequences.values() if sequence.lease > 0]
            if not batch:
                self._work.clear()
                await self._work.wait()
                continue
            costs = self._costs
            joining = sum(len(sequence.prompt_ids) for sequence in batch if sequence.joins)
            seconds = costs.step_seconds + costs.sequence_seconds * len(batch) + costs.prompt_seconds * joining
            await asyncio.sleep(seconds)
            self._report([sequence for sequence in batch if sequence.id in self._sequences], seconds)

    def _report(self, batch: list[SimulatedSequence], seconds: float) -> None:
        for sequence in batch:
            sequence.joins = False
        batch = [sequence for sequence in batch if sequence.lease > 0]
        self._send(protocol.Bundle([sequence.next() for sequence in batch], 1, seconds))
        for sequence in batch:
            if sequence.made >= sequence.max_tokens:
                del self._sequences[sequence.id]
                self._send(protocol.Done(sequence.id, "length"))
            elif sequence.lease == 0:
                self._send(protocol.Parked(sequence.id))

    def _load(self, message: protocol.Load) -> None:
        try:
            self._costs = msgspec.convert(message.options, CostModel)
        except msgspec.ValidationError as error:
            allowed = ", ".join(CostModel.__struct_fields__)
            self._send(protocol.LoadFailed(to_wire(ConfigError(f"simulated driver: {error}; options: {allowed}"))))
            return
        self._max_tokens = message.max_tokens
        facts = {"device": "simulated", **msgspec.structs.asdict(self._costs)}
        loaded = protocol.Loaded(self._costs.context, facts)
        self._send(protocol.Loading("pretending to load"))
        asyncio.get_running_loop().call_later(self._costs.load_seconds, self._send, loaded)

    def _admit(self, admit: protocol.Admit) -> None:
        try:
            prompt_ids = admit.prompt_ids if admit.prompt_ids is not None else words(admit.prompt)
            sequence = SimulatedSequence(admit, prompt_ids, self._room(len(prompt_ids), admit.sampling))
        except LlmosError as error:
            self._send(protocol.Failed(admit.sequence, to_wire(error)))
            return
        if admit.prompt_ids is None:
            self._send(protocol.Admitted(admit.sequence, prompt_ids))
        self._sequences[admit.sequence] = sequence

    def _room(self, prompt: int, sampling: Sampling) -> int:
        """How many tokens may be made. Raises `ContextOverflow`."""
        context = self._costs.context
        wanted = sampling.max_tokens or min(self._max_tokens, self._costs.reply_tokens, max(context - prompt, 1))
        if prompt + wanted > context:
            raise ContextOverflow(
                f"a prompt of {prompt} tokens and {wanted} to generate exceed the context of {context} tokens",
                prompt_tokens=prompt,
                max_tokens=wanted,
                context=context,
            )
        return wanted


def words(prompt: list[ChatMessage] | str) -> list[int]:
    """One id per word of the prompt."""
    text = prompt if isinstance(prompt, str) else " ".join(message.content for message in prompt)
    ids = [len(word) for word in text.split()]
    if not ids:
        raise InvalidPrompt("the prompt is empty")
    return ids


class _KernelConnection(FramedProtocol):
    """The driver's end of its socket, on the driver's own loop."""

    def __init__(self) -> None:
        super().__init__()
        self.device = SimulatedDevice(lambda message: self.send_frame(ENCODER.encode(message)))

    def frame_received(self, payload: bytes) -> None:
        self.device.handle(decode(payload, protocol.ToDriver))

    def closed(self) -> None:
        sys.exit(0)


async def _serve(descriptor: int) -> None:
    connection = socket.socket(fileno=descriptor)
    _, kernel = await asyncio.get_running_loop().create_connection(_KernelConnection, sock=connection)
    await kernel.device.run()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(int(sys.argv[2]))
    asyncio.run(_serve(int(sys.argv[1])))
