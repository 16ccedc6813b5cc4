"""The system calls that run models: generate, score and embed.

The gate calls their handlers. A handler creates the sequences of one call and waits for them. If one of them fails or
the caller is cancelled, the handler cancels those that have not finished. It never chooses a slot or a driver, and asks
the resource manager for the runtime of a model.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import Any, TypeVar, cast

import msgspec

from ipc.codec import UNDECODABLE, decoder, encode
from ipc.errors import InvalidCall, InvalidPrompt, NotEncodable
from ipc.messages import Log
from ipc.syscalls import ChatMessage, Completion, EmbedTexts, Generate, Sampling, Score, ScoreText
from kernel.core.fiber import PARK
from kernel.core.process import Process, Thread
from kernel.drivers import protocol
from kernel.gate import Gate
from kernel.models import constraints, cut_replies, sequence
from kernel.models.call_wait import ModelCallWait
from kernel.models.generation import Generation, GenerationRecorder
from kernel.models.query import Query, Question
from kernel.models.runtime import ModelRuntime
from kernel.processes.limits import LimitEnforcer

MAX_SAMPLES = 1024  # per call
MAX_TEXTS = 4096  # per call
SEEDS = 2**63

PromptAndSampling = tuple[list[ChatMessage] | str, Sampling]

S = TypeVar("S", bound=sequence.Sequence)


class ModelSubsystem:
    """Serves model calls. `runtime` finds the runtime of a model by its name; None is the default model."""

    def __init__(self, runtime: Callable[[str | None], ModelRuntime], gate: Gate, limits: LimitEnforcer) -> None:
        self._runtime = runtime
        self._limits = limits
        self._last_sequence = 0
        self._of_process: dict[Process, dict[sequence.Sequence, None]] = {}
        gate.register({Generate: self.generate, ScoreText: self.score, EmbedTexts: self.embed})

    def generate(
        self, process: Process, call: Generate, *, record: GenerationRecorder | None = None
    ) -> Coroutine[Any, Any, str | list[Completion]]:
        """Check the call, and return the coroutine that makes it.

        The recorder `record` persists the progress of the call, and returns that of a previous run of the daemon.
        """
        if type(call.samples) is not int or not 1 <= call.samples <= MAX_SAMPLES:
            raise InvalidCall(f"samples is {call.samples}; it must be a whole number from 1 to {MAX_SAMPLES}")
        self._limits.check_tokens(process)
        runtime = self._runtime(call.model)
        if not process.is_client:
            _check_prompt(call.prompt, call.sampling)
        constraints.check(call.sampling)
        return self._generate(process, call, runtime, record)

    def score(self, process: Process, call: ScoreText) -> Coroutine[Any, Any, list[Score]]:
        _check_texts("continuations", call.continuations)
        if not process.is_client:
            _check_prompt(call.prompt, Sampling())
        self._limits.check_tokens(process)
        make_question = partial(_score, call)
        return self._score(process, make_question, self._runtime(call.model))

    def embed(self, process: Process, call: EmbedTexts) -> Coroutine[Any, Any, list[list[float]]]:
        _check_texts("texts", call.texts)
        self._limits.check_tokens(process)
        make_question = partial(_embed, call)
        return self._embed(process, make_question, self._runtime(call.model))

    async def _generate(
        self, process: Process, call: Generate, runtime: ModelRuntime, record: GenerationRecorder | None
    ) -> str | list[Completion]:
        thread = cast("Thread", asyncio.current_task())
        sampling = _with_defaults(call.sampling, runtime)
        assert sampling.seed is not None
        generations = [
            Generation(
                self._next_id(),
                process,
                thread,
                runtime.name,
                call.prompt,
                msgspec.structs.replace(sampling, seed=(sampling.seed + number) % SEEDS),
                call.emit,
                record,
            )
            for number in range(call.samples)
        ]
        if record is not None:
            for number, generation in enumerate(generations):
                if (snapshot := record.restore_point(number)) is not None:
                    generation.restore(snapshot)
            record.set_generations(generations)
        await self._run(generations, process, thread, runtime)
        process.critical_path = max(
            process.critical_path, *(generation.critical_path + generation.service for generation in generations)
        )
        completions = [generation.completion() for generation in generations]
        constraints.check_replies(completions, sampling)
        if call.full:  # the caller gets the reason, and decides whether the user should know
            return completions
        if warning := cut_replies.warning(completions, sampling.max_tokens):
            fields = {"program": process.program, "model": runtime.name}
            process.write_log(Log(process.pid, time.time(), "warning", warning, fields))
        return completions if call.samples > 1 or sampling.logprobs else completions[0].text

    async def _score(
        self, process: Process, make_question: Callable[[int, int], Question], runtime: ModelRuntime
    ) -> list[Score]:
        answer = await self._ask(process, make_question, runtime)
        assert isinstance(answer, protocol.Scored)
        return [Score(*pair) for pair in zip(answer.logprobs, answer.tokens, strict=True)]

    async def _embed(
        self, process: Process, make_question: Callable[[int, int], Question], runtime: ModelRuntime
    ) -> list[list[float]]:
        answer = await self._ask(process, make_question, runtime)
        assert isinstance(answer, protocol.Embedded)
        return answer.vectors

    async def _ask(self, process: Process, make_question: Callable[[int, int], Question], runtime: ModelRuntime) -> Any:
        thread = cast("Thread", asyncio.current_task())
        query = Query(self._next_id(), process, thread, runtime.name, make_question)
        await self._run([query], process, thread, runtime)
        return query.answer

    async def _run(self, sequences: list[S], process: Process, thread: Thread, runtime: ModelRuntime) -> None:
        """Run `sequences` until all have finished. If one fails or the thread is cancelled, cancel the others."""
        runtime = self._runtime(runtime.name)  # another one if the model was forgotten since the call was checked
        wait = ModelCallWait(sequences, runtime)
        own = self._of_process.setdefault(process, {})
        own.update(dict.fromkeys(sequences))
        try:
            for one in sequences:
                runtime.submit(one)
            while not all(one.finished for one in sequences):
                for one in sequences:
                    if one.error is not None:
                        raise one.error
                thread.waits_for = wait
                await PARK
        finally:
            for one in sequences:
                own.pop(one, None)
                if not one.finished:
                    runtime.cancel(one)
            if not own:
                self._of_process.pop(process, None)
        for one in sequences:
            if one.error is not None:
                raise one.error

    def of_process(self, process: Process) -> Iterable[sequence.Sequence]:
        """The sequences of `process` that have not ended, in the order of their calls."""
        return self._of_process.get(process, ())

    def _next_id(self) -> int:
        self._last_sequence += 1
        return self._last_sequence


def _check_prompt(prompt: list[ChatMessage] | str, sampling: Sampling) -> None:
    """Encode and decode an agent's prompt as the driver will. Raises `InvalidPrompt`.

    A prompt that the driver cannot decode would kill the driver, and interrupt all other sequences of the model.
    """
    try:
        decoder(PromptAndSampling).decode(encode((prompt, sampling)))
    except NotEncodable as error:
        raise InvalidPrompt(f"the prompt cannot be sent: {error.message}") from None
    except UNDECODABLE as error:
        raise InvalidPrompt(f"a prompt must be a text or a list of chat messages: {error}") from None


def _check_texts(name: str, texts: list[str]) -> None:
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise InvalidCall(f"{name} must be a list of at least one text, none of them empty")
    encode(texts)  # raises `NotEncodable` for a text with lone surrogates, which only agents can pass
    if len(texts) > MAX_TEXTS:
        raise InvalidCall(f"{len(texts)} {name} in one call; at most {MAX_TEXTS} are allowed")


def _with_defaults(sampling: Sampling, runtime: ModelRuntime) -> Sampling:
    """`sampling` with the defaults of the model, and a random seed if it has none."""
    temperature = runtime.spec.temperature if sampling.temperature is None else sampling.temperature
    seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
    return msgspec.structs.replace(sampling, temperature=temperature, seed=seed)


def _score(call: ScoreText, number: int, pid: int) -> protocol.ScoreQuery:
    return protocol.ScoreQuery(number, call.prompt, call.continuations, pid)


def _embed(call: EmbedTexts, number: int, pid: int) -> protocol.EmbedQuery:
    return protocol.EmbedQuery(number, call.texts, pid)
