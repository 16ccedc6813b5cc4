"""The share of a step that goes to prompts: other sequences stay fast, and the oldest and shortest prompts progress.

A stated model of a device gives the time of a step; no test measures one.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="tiles are those of attention (extra `local`)")

from kernel.drivers.protocol import Bundle, Done  # noqa: E402
from kernel.drivers.transformers.attention import TILE, Span  # noqa: E402
from kernel.drivers.transformers.prefill_budget import PROBE, PendingTokens, PrefillBudget  # noqa: E402
from tests.support.tiny import Kernel, admit, ready  # noqa: E402

MOST = 256
PENDING = st.lists(
    st.builds(PendingTokens, st.integers(0, 200), st.integers(1, 300), st.booleans()), min_size=1, max_size=20
)
SINGLE = PendingTokens(500, 1, generated=True)
LLAMA = ready("Llama")


def rows_of(pending: list[PendingTokens], counts: list[int]) -> int:
    return sum(count for work, count in zip(pending, counts, strict=True) if work.tokens > 1)


class Device:
    """Runs steps of `singles` decoding sequences and some prompts; a step takes `cost(singles, rows, position)`."""

    def __init__(self, cost: Callable[[int, int, int], float]) -> None:
        self.prefill_budget = PrefillBudget(MOST)
        self.cost = cost
        self.seconds: list[float] = []

    def step(self, singles: int, prompts: list[list[int]]) -> list[int]:
        """Run a step. `prompts` are [done, length] each, oldest first; `done` advances. Returns the rows of each."""
        pending = [SINGLE] * singles + [PendingTokens(done, length - done, generated=False) for done, length in prompts]
        counts = self.prefill_budget.shares(pending)[singles:]
        position = max((done for (done, _), count in zip(prompts, counts, strict=True) if count), default=0)
        for prompt, count in zip(prompts, counts, strict=True):
            prompt[0] += count
        seconds = self.cost(singles, sum(counts), position)
        self.prefill_budget.record_step(seconds, singles, sum(counts))
        self.seconds.append(seconds)
        return counts


@given(PENDING, st.integers(TILE, 512), st.integers(0, 3))
def test_singles_run_rows_share_the_room_and_end_at_tiles(pending: list[PendingTokens], most: int, steps: int) -> None:
    prefill_budget = PrefillBudget(most)
    for _ in range(steps + 1):
        counts = prefill_budget.shares(pending)
        for work, count in zip(pending, counts, strict=True):
            assert 0 <= count <= work.tokens
            assert count == 1 or work.tokens > 1
            if not work.generated and 0 < count < work.tokens:
                assert (work.start + count) % TILE == 0
    assert rows_of(pending, counts) <= most
    assert sum(counts) > 0
    if not any(work.generated and work.tokens == 1 for work in pending):
        wanted = sum(work.tokens for work in pending if work.tokens > 1)
        assert rows_of(pending, counts) >= min(wanted, most - TILE + 1)  # the rest does not reach the end of a tile


@given(st.floats(0.001, 1.0), st.floats(0.0, 0.6), st.floats(0.0, 0.2), st.integers(1, 64), st.integers(1, 8000))
def test_a_long_prompt_keeps_its_neighbours_below_twice_their_pace(
    alone: float, tile: float, ahead: float, singles: int, length: int
) -> None:
    """`tile`: cost of a tile as a share of a step without one; `ahead`: how much of it 4,000 earlier tokens add."""
    device = Device(lambda _, rows, position: alone * (1 + tile * rows / TILE * (1 + ahead * position / 4000)))
    for _ in range(5):
        device.step(singles, [])
    prompt = [0, length]
    while prompt[0] < length:
        device.step(singles, [prompt])
    slow = [seconds for seconds in device.seconds if seconds >= 2 * alone]
    assert not slow


def test_a_prompt_gets_as_much_of_a_step_as_its_neighbours_hardly_notice() -> None:
    device = Device(lambda singles, rows, _: 0.04 + 0.0001 * rows)
    for _ in range(5):
        device.step(8, [])
    prompt = [0, 8000]
    rows = [sum(device.step(8, [prompt])) for _ in range(60)]
    assert max(rows) >= 0.25 * 0.04 / 0.0001  # a quarter of a step's time
    assert prompt[0] > 3000


def test_an_old_prompt_is_not_starved_by_shorter_ones_that_keep_coming() -> None:
    device = Device(lambda singles, rows, _: 1.0 + rows)  # so slow that prompts get a tile at a time
    device.step(4, [])
    old, steps = [0, 1000], 0
    while old[0] < 1000:
        device.step(4, [old, [0, 14], [0, 15]])
        steps += 1
    assert steps <= 2 * (1000 // TILE + 1) * PROBE / (PROBE - 1)


def test_a_short_prompt_does_not_wait_for_a_long_one() -> None:
    device = Device(lambda singles, rows, _: 1.0 + rows)
    device.step(4, [])
    device.step(4, [[0, 2000]])
    short = [0, 20]
    prompts = [[TILE, 2000], short]
    for _ in range(6):
        device.step(4, prompts)
    assert short[0] == 20


def test_prompts_that_never_cease_do_not_keep_the_pace_of_a_smaller_batch() -> None:
    """The time of a step without prompts must stay known, or prompts would get one tile a step for ever."""
    device = Device(lambda singles, rows, _: 0.01 + 0.001 * singles + 0.0002 * rows)
    for _ in range(5):
        device.step(1, [])
    for _ in range(400):
        device.step(48, [[0, 300], [0, 300], [0, 300]])
    rows = [sum(device.step(48, [[0, 300], [0, 300], [0, 300]])) for _ in range(10)]
    assert max(rows) >= 4 * TILE
    assert max(device.seconds) < 2 * 0.058


def test_prompts_that_were_there_from_the_first_step_on_get_more_than_a_tile() -> None:
    device = Device(lambda singles, rows, _: 0.04 + 0.0001 * rows)
    for _ in range(99):  # so that the next step is not one without prompts
        device.step(8, [[0, 300], [0, 300]])
    assert sum(device.step(8, [[0, 300], [0, 300]])) >= 4 * TILE


# ---- in the engine


@pytest.mark.parametrize("most", [16, 32, 64])
def test_a_prompt_in_chunks_gives_what_the_whole_prompt_gives(most: int) -> None:
    kernel = Kernel(LLAMA, most=most).run(admit(1), admit(4), admit(2))
    for sequence in (1, 2, 4):
        assert kernel.ids[sequence] == Kernel(LLAMA).run(admit(sequence)).ids[sequence]
    assert max(sum(len(span.tokens) for span in spans if len(span.tokens) > 1) for spans in kernel.batches) <= most


@pytest.mark.parametrize("max_rows", [32, 64])
def test_no_step_has_more_rows_than_the_device_may_have(max_rows: int) -> None:
    kernel = Kernel(LLAMA, most=max_rows // 2, max_rows=max_rows)
    shared = "a beginning for all, "
    kernel.during = {4: [admit(sequence, shared + "more" * sequence, max_tokens=20) for sequence in range(2, 24)]}
    kernel.run(admit(1, shared, max_tokens=40))
    assert len(kernel.of(Done)) == 23
    assert max(sum(len(span.tokens) for span in spans) for spans in kernel.batches) <= max_rows


def test_a_long_prompt_holds_up_neither_tokens_nor_a_short_prompt() -> None:
    kernel = Kernel(LLAMA)

    def seconds(spans: list[Span]) -> float:
        return 0.03 + 0.01 * sum(len(span.tokens) for span in spans if not span.generated)

    kernel.seconds = seconds
    kernel.during = {2: [admit(2, "long" * 40)], 3: [admit(3, "short")]}
    kernel.run(admit(1, "first", max_tokens=40))
    steps = [[progress.sequence for progress in bundle.progress] for bundle in kernel.of(Bundle)]
    first = {sequence: next(n for n, step in enumerate(steps) if sequence in step) for sequence in (1, 2, 3)}
    assert first[3] < first[2]
    assert all(any(span.generated for span in spans) for spans in kernel.batches[1:40])


def test_a_short_prompt_that_comes_alone_is_read_at_once() -> None:
    device = Device(lambda singles, rows, _: 0.06 + 0.0017 * rows)
    device.step(32, [])
    device.step(32, [[0, 10]])  # from here on the cost of a prompt is known
    for _ in range(4):
        device.step(32, [])
    assert device.step(32, [[0, 30]]) == [30]
    assert device.seconds[-1] < 2 * 0.06
    assert sum(device.step(32, [[0, 30]])) == TILE  # one leap, then tile by tile


def test_it_is_measured_anew_what_a_step_takes_when_others_have_begun_to_generate() -> None:
    device = Device(lambda singles, rows, _: 0.01 * singles + 0.0001 * rows)
    device.step(1, [])
    for _ in range(3):
        device.step(1, [[0, 300]])
    assert device.step(10, [[0, 300]]) == [0]
    assert sum(device.step(10, [[0, 300]])) > 0
