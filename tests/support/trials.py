"""Random scripts for the whole engine: calls that arrive, are revoked, swapped, damaged, and taken up by new drivers.

A `Trial` plays the kernel for one seed and says what came out otherwise than when each call is alone. All that is
random comes from the seed, also when worker threads are done, so that a seed tells the same story each time.
"""

from __future__ import annotations

import queue
import random
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer as Core
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ipc.syscalls import Constraint, Sampling
from kernel.drivers.protocol import (
    Admit,
    Admitted,
    Bundle,
    Cancel,
    Done,
    Embed,
    Embedded,
    Ended,
    Failed,
    Parked,
    Renew,
    Resize,
    Revoke,
    Score,
    Scored,
    Stop,
    SwapOut,
    SwappedOut,
)
from kernel.drivers.transformers.attention import Span
from kernel.drivers.transformers.tokenize_ahead import tokenized
from kernel.drivers.transformers.tokenizer import Tokenizer
from tests.support.tiny import Kernel, Ready, ready

MERGES = [("t", "h"), ("th", "e"), ("i", "n"), ("Ġ", "a"), ("e", "r"), ('"', ":"), ("{", '"'), ("1", "2"), ("a", "b")]
CONTEXT = 448  # longer than the lengths that are unsafe on many machines, a block being 512
POOL = 40  # different calls of a model
LOOP = 3000  # times that the engine may fall idle, after which a trial is stuck
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("Llama", "float32", {}),
    "llama-half": ("Llama", "float16", {}),
    "qwen3": ("Qwen3", "float32", {"num_attention_heads": 4, "num_key_value_heads": 1}),
    "mistral": ("Mistral", "float16", {"sliding_window": 70, "num_key_value_heads": 4}),
    "modules": ("Llama", "float32", {"mlp_bias": True, "num_attention_heads": 6, "hidden_size": 96}),
}


class Inline(Executor):
    """A pool of worker threads that does its work at once, on the caller's."""

    _threads: tuple[()] = ()

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work(*arguments, **named))
        except Exception as error:
            future.set_exception(error)
        return future


@cache
def codec() -> Tokenizer:
    """A small byte-level tokenizer of the real kind."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {
        letter: place for place, letter in enumerate([*letters, *("".join(pair) for pair in MERGES), "<end>"])
    }
    core = Core(models.BPE(vocab=vocabulary, merges=MERGES))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    hf = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>")
    found = Tokenizer(hf, frozenset({vocabulary["<end>"]}), "tiny", len(vocabulary))
    found.grammars._pool = Inline()  # type: ignore[assignment]
    return found


@cache
def model_of(name: str) -> Ready:
    kind, kernel, changes = MODELS[name]
    return ready(kind, kernel, vocab_size=len(codec()._hf), max_position_embeddings=CONTEXT, **changes)


# ---- calls


class Said(NamedTuple):
    """What a call said."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    reason: str


def prompt_of(number: int) -> str:
    """Of call `number`: several have a beginning in common, of any length; each fifth is long."""
    rng = random.Random(number)
    words = ["the", "in", "ab", "12", "er", " a", "é", "x", "\n", '{"', "zz"]
    system = random.Random(number % 4)
    length = rng.choice([0, 0, 17, 60, 180]) if number % 5 else 330
    beginning = "".join(system.choice(words) for _ in range(200))[:length]
    return beginning + "".join(rng.choice(words) for _ in range(rng.choice([1, 2, 5, 20, 40])))


CONSTRAINTS = [
    Constraint("regex", "[ab]{3,20}(the|in)*[0-9]{2}"),
    Constraint("choices", '["yes", "no, not at all", "the other one", "é"]'),
    Constraint("schema", '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}'),
]


def sampling_of(number: int) -> Sampling:
    rng = random.Random(number + 1_000_000)
    kinds: list[dict[str, Any]] = [
        {"temperature": 0},
        {"temperature": 1},
        {"temperature": 1.5, "top_p": 0.9},
        {"temperature": 0.8, "top_k": 20},
    ]
    changes = rng.choice(kinds)
    if rng.random() < 0.25:
        changes = changes | {"constraint": rng.choice(CONSTRAINTS)}
    if rng.random() < 0.2:
        changes = changes | {"stop": ("th", "a", "12")}
    return Sampling(
        max_tokens=rng.choice([1, 3, 8, 20, 40]) if number % 5 else 40, seed=number, logprobs=True, **changes
    )


def other_call(number: int) -> Score | Embed:
    """A call that is no generation."""
    rng = random.Random(number)
    if number % 2:
        return Score(number, prompt_of(number), [prompt_of(rng.randrange(POOL))[:30] or "x" for _ in range(3)])
    return Embed(number, [prompt_of(rng.randrange(POOL)) for _ in range(2)])


@cache
def alone(model: str, number: int) -> Said:
    """What call `number` says alone, in a driver of its own."""
    kernel = Scripted(model_of(model), random.Random(0))
    kernel.run(Admit(number, prompt_of(number), sampling_of(number), 1000))
    (done,) = kernel.of(Done)
    return Said(tuple(kernel.ids[number]), tuple(kernel.logprobs[number]), kernel.text[number], done.reason)


@cache
def answer_alone(model: str, number: int) -> Scored | Embedded:
    kernel = Scripted(model_of(model), random.Random(0)).run(other_call(number))
    (answer,) = kernel.of(Scored) + kernel.of(Embedded)
    assert isinstance(answer, Scored | Embedded)
    return answer


# ---- the driver


class Killed(BaseException):
    """The driver ends in the middle of a step: what it did not send is lost."""


class Scripted(Kernel):
    """Hears from worker threads when the script says so."""

    def __init__(self, model: Ready, rng: random.Random, **options: Any) -> None:
        self._late: list[tuple[int, Any]] = []  # the step before which, and what
        self._rng = rng
        super().__init__(model, codec(), **options)
        self.admission.states.thread = Inline()  # type: ignore[assignment]

    def put(self, message: Any) -> None:
        self._late.append((len(self.batches) + self._rng.choice([0, 0, 1, 3]), message))

    def get(self, block: bool) -> Any:
        if self.said:
            return tokenized(self.codec, self.said.popleft())
        for place, (step, message) in enumerate(self._late):
            if block or step <= len(self.batches):
                del self._late[place]
                return message
        if block:
            return Stop()
        raise queue.Empty


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
    """A script of `seed` with some calls of `model`. `folder` is for swapped states; `log` says what was done."""

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
        self.failed: list[Failed] = []
        self.restarts = self.rng.choice([0, 0, 1, 2])
        self.heat = self.rng.choice([0.05, 0.2, 0.5])  # how often something is done to somebody
        self.kernel = self._start()

    def run(self) -> list[str]:
        """What came out otherwise than it should have."""
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
        """In a step: something may happen after it, and nothing if the driver dies in it."""
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
        """Nothing can run: then something must be done that lets somebody run."""
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
        if not any(request.parts[0].id == identity for request in self.kernel.admission._requests.values()):
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
            case Failed():
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
                found.append(f"call {call.id} ({call.number}): {said} and not {expected}")
        for identity, number in self.others.items():
            if (answer := self.answers.get(identity)) is not None:
                expected_answer = answer_alone(self.model, number)
                answer.sequence = expected_answer.sequence
                if answer != expected_answer:
                    found.append(f"call {identity} ({number}): {answer} and not {expected_answer}")
        if not found and self.kernel.memory.used:
            found.append(f"{self.kernel.memory.used} bytes are still booked")
        return found
