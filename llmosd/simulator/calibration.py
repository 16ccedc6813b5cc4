"""Fits a device model to a running daemon: asks its model for batches of known sizes, and looks at how long they took.

Used by `llmos calibrate` and the benches. It needs the daemon for itself meanwhile: what others ask of the model makes
steps longer, and the error of the fit says so.
"""

from __future__ import annotations

import itertools
import math
import operator
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from ipc.errors import CalibrationFailed
from ipc.syscalls import FinishedCall, ModelInfo, SlotInfo
from llmosd.client.blocking import Client
from llmosd.simulator.device import DeviceModel
from llmosd.simulator.least_squares import fit
from llmosd.simulator.recorder import Recorder

TOKENS = 48  # made by each call of a batch
SIZES = (1, 2, 4, 8, 16, 32, 64)
# Words of prompts, in turn: sequences of one length are looked at in one go, which those of real work are not.
LENGTHS = (12, 150, 40, 90)
PROMPTS = (100, 300, 900)  # words, read alone
CONTEXT = (4, 600)  # calls, and words of their prompts: to tell what attention costs
# Words and tokens of calls of which prompts are read while others make tokens, and all of these together.
MIXED = ((10, 8), (40, 20), (100, 40))
MEDLEY = ((10, 50), (100, 10), (40, 30), (100, 60), (10, 20), (40, 50))
QUEUED, MOST = 3, 48  # times as many of these at once as there are slots, up to so many
ROUNDS = 2
PATIENCE = 5.0  # seconds for the last calls to be told of

T = TypeVar("T")

BLANK = DeviceModel(step=1.0)
# How the drivers of llmosd read prompts: tokens a step alone; times a step may take as long for their sake; the least.
READING = {"transformers": msgspec.structs.replace(BLANK, chunk=512, slower=1.6, tile=16)}


class Observation(msgspec.Struct, frozen=True):
    """A batch of steps, as far as it can be seen from outside.

    How many steps, sequences in all of them together, tokens of prompts and of contexts, and seconds; `reading` is how
    many of the steps read prompts.
    """

    steps: int
    sequences: int
    prompt: int
    context: int
    seconds: float
    reading: int = 0

    @property
    def row(self) -> list[float]:
        """What the costs of a device are multiplied with."""
        return [self.steps, self.sequences, self.prompt, self.context, self.reading]


def measure(client: Client, model: str | None, say: Callable[[str], None]) -> DeviceModel:
    """The device of `model` in the daemon, None for its default one.

    Raises `CalibrationFailed`, and what a call of the model may raise.
    """
    info = _model(client.models(), model)
    say(f"loading model {info.name}")
    _ask(client, info.name, [("Warm up, please.", 4)])
    slots = _slots(client.slots(), info.name)
    if slots.used or slots.queued:
        raise CalibrationFailed(f"model {info.name} has other work: {slots.used} calls run; calibrate when it is idle")
    blank = READING.get(info.driver, BLANK)
    recorder = Recorder(client)
    observations: list[Observation] = []

    def observe(shapes: Sequence[tuple[int, int]]) -> None:
        observations.append(_observe(client, recorder, blank, info.name, shapes, len(observations)))

    for number in range(ROUNDS):
        for count in (size for size in SIZES if size <= slots.given):
            say(f"round {number + 1} of {ROUNDS}: {count} at once")
            observe([(words, TOKENS) for words in _in_turn(LENGTHS, count)])
        for words in PROMPTS:
            say(f"round {number + 1} of {ROUNDS}: a prompt of {words} words")
            observe([(words, 2)])
        for shapes in (*((shape,) for shape in MIXED), MEDLEY, MEDLEY):
            count = min(QUEUED * slots.given, MOST)
            lengths = " and ".join(dict.fromkeys(str(words) for words, _ in shapes))
            say(f"round {number + 1} of {ROUNDS}: {count} with prompts of {lengths} words, which wait for each other")
            observe(_in_turn(shapes, count))
        count, words = CONTEXT
        observe([(words, TOKENS)] * min(count, slots.given))
    source = f"model {info.name} ({info.driver} driver), {slots.cores or 'all'} cores, {time.strftime('%Y-%m-%d')}"
    blank = msgspec.structs.replace(blank, slots=slots.slots, name=info.name, source=source)
    return device_of(observations, blank)


def device_of(observations: Sequence[Observation], blank: DeviceModel) -> DeviceModel:
    """`blank` with the costs that fit `observations` best. Raises `CalibrationFailed`."""
    try:
        costs = fit([one.row for one in observations], [one.seconds for one in observations])
    except ZeroDivisionError:
        raise CalibrationFailed("what was measured does not tell the costs of steps and prompts apart") from None
    step, sequence, prompt, context, reading = costs
    if step + sequence <= 0:
        raise CalibrationFailed("what was measured takes no time")
    errors = [abs(sum(map(operator.mul, one.row, costs)) / one.seconds - 1) for one in observations]
    return msgspec.structs.replace(
        blank,
        step=_digits(step),
        sequence=_digits(sequence),
        prompt=_digits(prompt),
        context=_digits(context),
        reading=_digits(reading),
        error=_digits(sum(errors) / len(errors)),
        worst=_digits(max(errors)),
    )


def _observe(
    client: Client,
    recorder: Recorder,
    blank: DeviceModel,
    model: str,
    shapes: Sequence[tuple[int, int]],
    number: int,
) -> Observation:
    """Ask at once for calls of these `shapes`: words of the prompt, and tokens.

    No prompt may begin like an earlier one, since it would be found and not read: `number` is another one for each
    observation.
    """
    recorder.poll()
    before, count = _slots(client.slots(), model).steps, len(shapes)
    prompts = [
        (f"{number}-{place} " + "tell me more of it " * (words // 5), tokens)
        for place, (words, tokens) in enumerate(shapes)
    ]
    _ask(client, model, prompts)
    calls: list[FinishedCall] = []
    end = time.monotonic() + PATIENCE
    while len(calls) < count and time.monotonic() < end:
        calls += recorder.poll()
    if len(calls) != count or any(call.error or call.started is None or not call.generated for call in calls):
        raise CalibrationFailed(f"of {count} calls {len(calls)} ended, or others were made meanwhile; try again")
    return observation(calls, _slots(client.slots(), model).steps - before, blank)


def observation(calls: Sequence[FinishedCall], steps: int, blank: DeviceModel) -> Observation:
    """What calls that were made at once took, in so many steps.

    Each step has at least one of them. Calls that run beside each other read their prompts in tiles, one alone in
    chunks.
    """
    tile = blank.chunk if len(calls) == 1 else blank.tile if blank.chunk else 0
    reading = sum(math.ceil(call.prompt / tile) if tile else 1 for call in calls)
    return Observation(
        steps=steps,
        sequences=max(sum(call.generated for call in calls), steps),
        prompt=sum(call.prompt for call in calls),
        context=sum((call.generated - 1) * call.prompt + call.generated * (call.generated - 1) // 2 for call in calls),
        seconds=max(call.ended for call in calls) - min(call.started or call.submitted for call in calls),
        reading=min(reading, steps),
    )


def _ask(client: Client, model: str, prompts: Sequence[tuple[str, int]]) -> None:
    """Run all of `prompts` at once, to their ends: each makes so many tokens."""
    options = {"model": model, "temperature": 1.0, "emit": False}
    tasks = [
        client.submit("generate", {"prompt": prompt, "max_tokens": tokens, "seed": seed, **options})
        for seed, (prompt, tokens) in enumerate(prompts)
    ]
    for task in tasks:
        task.result()


def _in_turn(values: Sequence[T], count: int) -> list[T]:
    """So many of `values`, from the first again after the last."""
    return list(itertools.islice(itertools.cycle(values), count))


def _model(models: Sequence[ModelInfo], name: str | None) -> ModelInfo:
    for info in models:
        if info.name == name or (name is None and info.default):
            return info
    known = ", ".join(info.name for info in models)
    raise CalibrationFailed(f"no model {name!r} in this daemon; there are: {known}")


def _slots(rows: Sequence[SlotInfo], model: str) -> SlotInfo:
    return next(row for row in rows if row.model == model)


def _digits(value: float) -> float:
    """Four digits: more were not measured."""
    return float(f"{value:.4g}")
