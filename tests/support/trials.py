"""Random scripts for the whole engine: calls that arrive, are revoked, swapped, damaged, and restored by new drivers.

A `Trial` plays the kernel for one seed and reports each call whose answer differs from its answer alone. The seed
decides everything, also when worker threads finish, so the same seed always runs the same script.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from kernel.drivers.protocol import (
    Admit,
    Admitted,
    Bundle,
    Cancel,
    Done,
    Embedded,
    Ended,
    Parked,
    Renew,
    Resize,
    Revoke,
    Scored,
    SequenceFailed,
    Stop,
    SwapOut,
    SwappedOut,
)
from kernel.drivers.transformers.attention import Span
from tests.support.random_calls import (
    POOL,
    Said,
    Scripted,
    alone,
    answer_alone,
    model_of,
    other_call,
    prompt_of,
    sampling_of,
)

LOOP = 3000  # times that the engine may fall idle, after which a trial is stuck


class Killed(BaseException):
    """The driver ends in the middle of a step: messages that it did not send are lost."""


class Call:
    """One generation as the kernel sees it. `state`: "new", "running", "parked", "swapping", "swapped", "over"."""

    def __init__(self, identity: int, number: int, process: int) -> None:
        self.id = identity
        self.number = number
        self.process = process
        self.state = "new"
        self.prompt_ids: list[int] | None = None
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.text = ""
        self.reason = ""
        self.path = ""
        self.cancelled = False

    def admit(self, lease: int) -> Admit:
        self.state = "running" if lease else "parked"
        prompt, sampling = prompt_of(self.number), sampling_of(self.number)
        if self.prompt_ids is None:
            return Admit(self.id, prompt, sampling, lease, process=self.process)
        ids, released, path = list(self.ids), len(self.text), self.path
        self.path = ""
        return Admit(self.id, prompt, sampling, lease, self.prompt_ids, ids, released, self.process, path)


class Trial:
    """A script of `seed` with some calls of `model`. `folder` is for swap files; `log` lists the actions."""

    def __init__(self, seed: int, model: str, folder: Path) -> None:
        self.rng = random.Random(seed)
        self.model = model
        self.folder = folder
        self.log: list[str] = []
        numbers = [self.rng.randrange(POOL) for _ in range(self.rng.randint(2, 8))]
        self.calls = {
            identity: Call(identity, number, self.rng.randrange(4)) for identity, number in enumerate(numbers, start=1)
        }
        self.others = {1000 + number: number for number in self.rng.sample(range(POOL), self.rng.choice([0, 0, 1, 3]))}
        self.answers: dict[int, Scored | Embedded] = {}
        self.failed: list[SequenceFailed] = []
        self.restarts = self.rng.choice([0, 0, 1, 2])
        self.heat = self.rng.choice([0.05, 0.2, 0.5])  # the chance of one more action in a step
        self.kernel = self._start()

    def run(self) -> list[str]:
        """Run the script; return the answers that differ from the expected ones."""
        for _ in range(LOOP):
            try:
                self.kernel.run()
            except Killed:
                self._restart("killed")
                continue
            if self._stopping:
                self._restart("stopped")
                continue
            self._hear()
            if self._over():
                break
            self._when_idle()
        else:
            return [f"stuck: {[(call.id, call.state) for call in self.calls.values()]}"]
        return self._differences()

    # ---- what the kernel does

    def _start(self) -> Scripted:
        rng = self.rng
        options = {
            "tokens": rng.choice([700, 1500, 10_000]),
            "slabs": rng.choice([2, 5, 24]),
            "most": rng.choice([16, 32, 64, 128, 256]),
            "fingerprint": rng.choice(["tiny"] * 9 + ["another"]),
            "disk": rng.choice([None, self.folder]),
        }
        self.log.append(f"start {options}")
        kernel = Scripted(model_of(self.model), rng, **options)
        kernel.seconds = lambda spans: rng.choice([0.001, 0.004, 0.01, 0.06])
        kernel.before = self._act
        self._heard = 0
        self._stopping = False
        return kernel

    def _restart(self, how: str) -> None:
        self.log.append(how)
        self._hear()
        self.kernel = self._start()
        for call in self.calls.values():
            if call.state in ("running", "parked", "swapping"):
                call.state, call.path = "new", ""

    def _act(self, spans: list[Span]) -> None:
        """During a step: kill or stop the driver, or send messages that it reads after the step."""
        if self.restarts and self.rng.random() < 0.03:
            self.restarts -= 1
            if self.rng.random() < 0.5:
                raise Killed
            self._stopping = True
            self._say(Stop())
            return
        self._hear()
        while self.rng.random() < self.heat:
            self._do_something()

    def _when_idle(self) -> None:
        """Nothing can run: let at least one waiting call run."""
        waiting = [call for call in self.calls.values() if call.state in ("new", "parked", "swapped")]
        for call in waiting:
            if self.rng.random() < 0.5:
                self._let_run(call)
        if waiting:
            self._let_run(self.rng.choice(waiting))
        for identity, number in self.others.items():
            if identity not in self.answers:
                self._say_other(identity, number)

    def _do_something(self) -> None:
        call = self.rng.choice(list(self.calls.values()))
        what = self.rng.random()
        if call.state == "running":
            if what < 0.6:
                self._say(Revoke(call.id))
            elif what < 0.9:
                self._say(Renew(call.id, self.rng.randint(1, 5)))
            elif what < 0.92 and not self.restarts:
                call.cancelled = True
                self._say(Cancel(call.id))
        elif call.state == "parked" and what < 0.5:
            call.state = "swapping"
            call.path = str(self.folder / f"{call.id}-{len(self.log)}")
            self._say(SwapOut(call.id, call.path))
        elif call.state in ("new", "parked", "swapped"):
            self._let_run(call)
        elif what < 0.1:
            self._say(
                self.rng.choice([Ended([call.process]), Resize(self.kernel.memory.size(self.rng.choice([800, 9000])))])
            )
        if self.others and what > 0.8:
            identity, number = self.rng.choice(list(self.others.items()))
            if identity not in self.answers:
                self._say_other(identity, number)

    def _let_run(self, call: Call) -> None:
        lease = self.rng.choice([1, 2, 3, 8, 50])
        if call.state == "parked":
            call.state = "running"
            self._say(Renew(call.id, lease))
        elif call.state in ("new", "swapped"):
            if call.path and self.rng.random() < 0.15:
                self._damage(Path(call.path))
            self._say(call.admit(lease))

    def _damage(self, path: Path) -> None:
        self.log.append(f"damage {path.name}")
        content = bytearray(path.read_bytes())
        content[self.rng.randrange(len(content))] ^= 1 << self.rng.randrange(8)
        path.write_bytes(content)

    def _say_other(self, identity: int, number: int) -> None:
        message = other_call(number)
        message.sequence = identity
        if identity not in self.kernel.calls._queries:
            self._say(message)

    def _say(self, message: Any) -> None:
        self.log.append(f"{len(self.kernel.batches)}: {message}")
        self.kernel.said.append(message)

    # ---- what the kernel hears

    def _hear(self) -> None:
        for message in self.kernel.sent[self._heard :]:
            self._take(message)
        self._heard = len(self.kernel.sent)

    def _take(self, message: Any) -> None:
        match message:
            case Bundle():
                for progress in message.progress:
                    call = self.calls[progress.sequence]
                    call.ids += progress.ids
                    call.logprobs += progress.logprobs
                    call.text += progress.text
            case Admitted():
                self.calls[message.sequence].prompt_ids = message.prompt_ids
            case Parked():
                call = self.calls[message.sequence]
                if call.state == "running":
                    call.state = "parked"
            case SwappedOut():
                call = self.calls[message.sequence]
                call.state = "swapped" if message.error is None else "parked"
                call.path = call.path if message.error is None else ""
            case Done():
                call = self.calls[message.sequence]
                call.state, call.reason = "over", message.reason
            case Scored() | Embedded():
                self.answers[message.sequence] = message
            case SequenceFailed():
                self.failed.append(message)

    # ---- the end

    def _over(self) -> bool:
        return bool(self.failed) or (
            all(call.state == "over" for call in self.calls.values()) and len(self.answers) == len(self.others)
        )

    def _differences(self) -> list[str]:
        found = [f"{failed}" for failed in self.failed]
        for call in self.calls.values():
            expected = alone(self.model, call.number)
            said = Said(tuple(call.ids), tuple(call.logprobs), call.text, call.reason)
            if call.cancelled and call.reason == "cancelled":
                count = len(said.ids)
                cut = (expected.ids[:count], expected.logprobs[:count])
                if (said.ids, said.logprobs) != cut or not expected.text.startswith(said.text):
                    found.append(f"call {call.id} ({call.number}), cancelled: {said} is no beginning of {expected}")
            elif said != expected:
                found.append(f"call {call.id} ({call.number}): {said} instead of {expected}")
        for identity, number in self.others.items():
            if (answer := self.answers.get(identity)) is not None:
                expected_answer = answer_alone(self.model, number)
                answer.sequence = expected_answer.sequence
                if answer != expected_answer:
                    found.append(f"call {identity} ({number}): {answer} instead of {expected_answer}")
        if not found and self.kernel.memory.used:
            found.append(f"{self.kernel.memory.used} bytes of KV memory are still in use")
        return found
