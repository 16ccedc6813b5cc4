"""Fits the costs of a device to a running daemon: submits batches of calls of known sizes, and measures their times.

Used by `llmos calibrate` and the benches. Calibrate an idle daemon: calls of other clients lengthen the steps, and so
increase the error of the fit. It changes no setting of the daemon.
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

TOKENS = 48  # of each call of a batch
SIZES = (1, 2, 4, 8, 16, 32, 64)
# Words of the prompts in a batch, in turn. Their lengths differ, since sequences of equal length share one pass of
# attention, which is rare in real work.
LENGTHS = (12, 150, 40, 90)
PROMPTS = (100, 300, 900)  # words of prompts that run alone
CONTEXT = (4, 600)  # the number of calls, and the words of each prompt: long contexts show the cost of attention
# Words and tokens of the calls in batches with more calls than slots. There, prompts are read while other calls make
# tokens.
MIXED = ((10, 8), (40, 20), (100, 40))
MIXED_LENGTHS = ((10, 50), (100, 10), (40, 30), (100, 60), (10, 20), (40, 50))
QUEUED, MOST_QUEUED = 3, 48  # in such a batch: calls per slot, and the most calls in all
ROUNDS = 2
PATIENCE = 5.0  # seconds for the last calls to appear in the daemon's call log

T = TypeVar("T")

TEMPLATE = DeviceModel(step=1.0)
# How each kind of driver reads prompts. Known from its code, not measured: see `DeviceModel`.
TEMPLATES = {"transformers": msgspec.structs.replace(TEMPLATE, chunk=512, slower=1.6, tile=16)}


class Observation(msgspec.Struct, frozen=True):
    """A series of `steps`, as seen from outside the daemon.

    Each field is a sum over the steps: `sequences` in a step, `prompt` tokens that it read, tokens of `context` that
    its sequences attended to, and its `seconds`. `reading`: the number of steps that read a prompt.
    """

    steps: int
    sequences: int
    prompt: int
    context: int
    seconds: float
    reading: int = 0

    @property
    def row(self) -> list[float]:
        """The factors of `step`, `sequence`, `prompt`, `context` and `reading` in the sum that equals `seconds`."""
        return [self.steps, self.sequences, self.prompt, self.context, self.reading]


def measure(client: Client, model: str | None, report: Callable[[str], None]) -> DeviceModel:
    """Measure the device on which the daemon runs `model` (None: its default model). `report` is called with progress.

    Raises `CalibrationFailed`, and the errors of the model's calls.
    """
    info = _model(client.models(), model)
    report(f"loading model {info.name}")
    _ask(client, info.name, [("Warm up, please.", 4)])
    slots = _slots(client.slots(), info.name)
    if slots.used or slots.queued:
        raise CalibrationFailed(
            f"model {info.name} has other work: {slots.used} calls run, {slots.queued} wait; calibrate when it has none"
        )
    template = TEMPLATES.get(info.driver, TEMPLATE)
    recorder = Recorder(client)
    observations: list[Observation] = []

    def observe(shapes: Sequence[tuple[int, int]]) -> None:
        observations.append(_observe(client, recorder, template, info.name, shapes, len(observations)))

    for number in range(ROUNDS):
        for count in (size for size in SIZES if size <= slots.given):
            report(f"round {number + 1} of {ROUNDS}: {count} calls")
            observe([(words, TOKENS) for words in _repeated(LENGTHS, count)])
        for words in PROMPTS:
            report(f"round {number + 1} of {ROUNDS}: a prompt of {words} words")
            observe([(words, 2)])
        for shapes in (*((shape,) for shape in MIXED), MIXED_LENGTHS, MIXED_LENGTHS):
            count = min(QUEUED * slots.given, MOST_QUEUED)
            lengths = " and ".join(dict.fromkeys(str(words) for words, _ in shapes))
            report(f"round {number + 1} of {ROUNDS}: {count} calls with prompts of {lengths} words, some of which wait")
            observe(_repeated(shapes, count))
        count, words = CONTEXT
        observe([(words, TOKENS)] * min(count, slots.given))
    source = f"model {info.name} ({info.driver} driver), {slots.cores or 'all'} cores, {time.strftime('%Y-%m-%d')}"
    template = msgspec.structs.replace(template, slots=slots.slots, name=info.name, source=source)
    return device_of(observations, template)


def device_of(observations: Sequence[Observation], template: DeviceModel) -> DeviceModel:
    """`template` with the costs that fit `observations` best. Raises `CalibrationFailed`."""
    try:
        costs = fit([one.row for one in observations], [one.seconds for one in observations])
    except ZeroDivisionError:
        raise CalibrationFailed(
            "the measurements do not tell the costs of steps and prompts apart; try again on an idle machine"
        ) from None
    step, sequence, prompt, context, reading = costs
    if step + sequence <= 0:
        raise CalibrationFailed("the measured steps take no time; try again on an idle machine")
    errors = [abs(sum(map(operator.mul, one.row, costs)) / one.seconds - 1) for one in observations]
    return msgspec.structs.replace(
        template,
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
    template: DeviceModel,
    model: str,
    shapes: Sequence[tuple[int, int]],
    number: int,
) -> Observation:
    """Run calls of these `shapes` (words of the prompt, tokens to make) together, and observe them.

    Every observation has another `number`, with which its prompts begin. So no prompt has the prefix of an earlier one,
    which the driver would find in its cache and not read.
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
        raise CalibrationFailed(
            f"{len(calls)} of {count} calls were seen, and some may have failed; stop other clients and try again"
        )
    return observation(calls, _slots(client.slots(), model).steps - before, template)


def observation(calls: Sequence[FinishedCall], steps: int, template: DeviceModel) -> Observation:
    """The observation of calls that were submitted together and took `steps` steps.

    At least one of the calls is in each step. A call that runs alone reads its prompt in chunks; calls that run beside
    others read their prompts in tiles.
    """
    tile = template.chunk if len(calls) == 1 else template.tile if template.chunk else 0
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
    """Submit all `prompts`, each with its number of tokens to make, and wait for all results."""
    options = {"model": model, "temperature": 1.0, "emit": False}
    tasks = [
        client.submit("generate", {"prompt": prompt, "max_tokens": tokens, "seed": seed, **options})
        for seed, (prompt, tokens) in enumerate(prompts)
    ]
    for task in tasks:
        task.result()


def _repeated(values: Sequence[T], count: int) -> list[T]:
    """`count` values, which repeat `values` in order."""
    return list(itertools.islice(itertools.cycle(values), count))


def _model(models: Sequence[ModelInfo], name: str | None) -> ModelInfo:
    for info in models:
        if info.name == name or (name is None and info.default):
            return info
    known = ", ".join(info.name for info in models)
    raise CalibrationFailed(f"no model {name!r} in this daemon; give one of {known}")


def _slots(rows: Sequence[SlotInfo], model: str) -> SlotInfo:
    return next(row for row in rows if row.model == model)


def _digits(value: float) -> float:
    """`value` rounded to four digits; the measurements are not more precise."""
    return float(f"{value:.4g}")
