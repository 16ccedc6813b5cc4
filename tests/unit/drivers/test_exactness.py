"""A call says the same, to the last bit of its logprobs, alone and in any company, whatever is done to it on the way.

Trials are random scripts (`trials`): neighbours, leases, revokes, swaps, damaged files, restarts, prefixes that are hit
and evicted. A trial that fails names the command that plays it again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the driver runs torch models (extra `local`)")
pytest.importorskip("llguidance", reason="constraints are compiled by llguidance (extra `local`)")

from kernel.drivers.protocol import Admit, Done, Parked, Renew, Restored, Revoke, SwapOut
from tests.support.random_calls import (
    CONTEXT,
    MODELS,
    alone,
    codec,
    model_of,
    prompt_of,
    sampling_of,
)
from tests.support.tiny import Kernel, Ready, build
from tests.support.trials import Trial

REPLAY = "LLMOS_TRIAL={seed} python -m pytest tests/unit/drivers/test_exactness.py -k 'any_company and {model}'"
LONG = 20  # a call of the pool whose tokens cross from lengths that are safe to some that may not be


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("model", MODELS)
def test_calls_say_in_any_company_what_they_say_alone(model: str, tmp_path: Path, trial: Callable[..., int]) -> None:
    asked = os.environ.get("LLMOS_TRIAL")
    seeds = [int(asked)] if asked else range(trial(short=3, long=200))
    for seed in seeds:
        played = Trial(seed, model, tmp_path)
        differences = played.run()
        if differences:
            story = "\n".join(played.log[-60:])
            pytest.fail(f"trial {seed}, again by {REPLAY.format(seed=seed, model=model)}\n{differences[0]}\n{story}")


def test_a_trial_is_the_same_each_time(tmp_path: Path) -> None:
    stories = []
    for folder in (tmp_path / "one", tmp_path / "other"):
        folder.mkdir()
        played = Trial(11, "llama", folder)
        played.run()
        stories.append([line.replace(str(folder), "") for line in played.log])
    assert len(stories[0]) > 10
    assert stories[0] == stories[1]


# ---- preemption at every position


class Preempted:
    """Call `LONG` with a neighbour, one token at a time: its output so far, over any number of drivers."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.expected = alone(model, LONG)
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.text = ""
        self.prompt_ids = codec().encode(prompt_of(LONG))

    def driver(self) -> Kernel:
        return Kernel(model_of(self.model), codec(), fingerprint=self.model)

    def admit(self, path: str = "") -> Admit:
        ids = self.prompt_ids if self.ids else None
        return Admit(1, prompt_of(LONG), sampling_of(LONG), 1, ids, list(self.ids), len(self.text), swapped=path)

    def hear(self, kernel: Kernel) -> None:
        """Append the output of call 1 in `kernel`."""
        self.ids += kernel.ids[1]
        self.logprobs += kernel.logprobs[1]
        self.text += kernel.text[1]

    @property
    def over(self) -> bool:
        return len(self.ids) == len(self.expected.ids)

    def check(self) -> None:
        assert tuple(self.ids) == self.expected.ids
        assert tuple(self.logprobs) == self.expected.logprobs
        assert self.text == self.expected.text


@pytest.fixture(params=["qwen3", "modules"])
def preempted(request: pytest.FixtureRequest) -> Preempted:
    found = Preempted(request.param)
    assert len(found.prompt_ids) + len(found.expected.ids) > 230
    assert len(found.expected.ids) > 30
    return found


def kv_of(kernel: Kernel, length: int) -> bytes:
    """The hash of the KV of the first `length` tokens of call 1."""
    slab = kernel.calls._sequences[1].slab
    assert slab is not None
    return blake2b(kernel.memory.tokens(slab, 0, length).contiguous().numpy().tobytes()).digest()


def test_a_call_that_is_parked_after_every_token_says_the_same(preempted: Preempted) -> None:
    kernel = preempted.driver().run(preempted.admit())
    for _ in range(len(preempted.expected.ids) - 1):
        assert isinstance(kernel.sent[-1], Parked)
        kernel.run(Renew(1, 1))
    preempted.hear(kernel)
    preempted.check()


def test_a_call_that_goes_to_disk_after_every_token_says_the_same(preempted: Preempted, tmp_path: Path) -> None:
    path = ""
    while not preempted.over:
        kernel = preempted.driver().run(preempted.admit(path))
        assert [restored.recomputed for restored in kernel.of(Restored)] == [False] * bool(path)
        assert len(kernel.batches) == 1
        preempted.hear(kernel)
        path = str(tmp_path / str(len(preempted.ids)))
        kernel.run(SwapOut(1, path))
    preempted.check()


def test_a_call_whose_driver_dies_after_every_token_says_the_same(preempted: Preempted) -> None:
    while not preempted.over:
        preempted.hear(preempted.driver().run(preempted.admit()))
    preempted.check()


@pytest.mark.parametrize("disk", [False, True])
def test_a_call_that_is_taken_off_in_every_step_of_its_prompt_says_the_same(
    preempted: Preempted, tmp_path: Path, disk: bool
) -> None:
    def driver() -> Kernel:
        kernel = Kernel(model_of(preempted.model), codec(), fingerprint=preempted.model, most=16)
        kernel.before = lambda spans: kernel.said.append(Revoke(1)) if not spans[0].generated else None
        return kernel

    message = preempted.admit()
    message.lease = 1000
    kernel, rows = driver().run(message), 0
    message.prompt_ids = preempted.prompt_ids
    while kernel.of(Done) == []:
        if disk and not kernel.ids:
            message.swapped = str(tmp_path / str(rows))
            rows += kernel.run(SwapOut(1, message.swapped)).rows
            kernel = driver().run(message)
        else:
            kernel.run(Renew(1, 1000))
    preempted.hear(kernel)
    preempted.check()
    assert rows + kernel.rows == len(preempted.prompt_ids) + len(preempted.ids) - 1  # nothing was computed twice


@pytest.mark.parametrize("count", [1, 23])
def test_keys_and_values_are_the_same_however_they_came_to_be(preempted: Preempted, tmp_path: Path, count: int) -> None:
    """Computed token by token, read from disk, or computed again beside other calls, the KV has the same hash."""
    kernel = preempted.driver()
    kernel.run(Admit(1, prompt_of(LONG), sampling_of(LONG), count))
    preempted.hear(kernel)
    length = len(preempted.prompt_ids) + count - 1
    expected = kv_of(kernel, length)
    path = str(tmp_path / "state")
    kernel.run(SwapOut(1, path))
    read = preempted.driver().run(preempted.admit(path))
    assert kv_of(read, length) == expected
    made = preempted.driver()
    company = [Admit(2, prompt_of(LONG)[:150] + "and on", sampling_of(LONG), 9), Admit(3, "x", sampling_of(22), 9)]
    made.during = {0: company}
    made.run(preempted.admit())
    assert kv_of(made, length) == expected


def test_the_number_of_threads_changes_no_bit(threads: Callable[[int], None]) -> None:
    expected = [alone("llama", number) for number in (LONG, 1)]
    kind, kernel, changes = MODELS["llama"]
    for count in (1, 3):
        threads(count)
        model = Ready(build(kind, vocab_size=len(codec()._hf), max_position_embeddings=CONTEXT, **changes), kernel)
        for number, said in zip((LONG, 1), expected, strict=True):
            found = Kernel(model, codec()).run(Admit(number, prompt_of(number), sampling_of(number), 1000))
            assert (tuple(found.ids[number]), tuple(found.logprobs[number])) == (said.ids, said.logprobs)
