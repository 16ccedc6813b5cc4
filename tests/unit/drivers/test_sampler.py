"""The sampler: greedy, filters, and noise that depends on (seed, position) alone."""

from __future__ import annotations

import math
from collections import Counter

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="the sampler works on torch tensors (extra `local`)")

from ipc.syscalls import Sampling  # noqa: E402
from kernel.drivers.transformers.sampler import LIKELY, is_greedy, likeliest_of, sample, uniform  # noqa: E402

SEEDS = st.integers(0, 2**63 - 1)
ROWS = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40).map(torch.tensor)


@given(SEEDS, st.integers(0, 2**20))
def test_noise_is_a_function_of_seed_and_position_in_the_unit_interval(seed: int, position: int) -> None:
    assert 0 <= uniform(seed, position) < 1
    assert uniform(seed, position) == uniform(seed, position)


def test_noise_is_spread_evenly() -> None:
    counts = Counter(int(10 * uniform(7, position)) for position in range(20_000))
    assert all(abs(counts[tenth] - 2_000) < 200 for tenth in range(10))


@given(ROWS)
def test_temperature_zero_none_and_top_k_one_take_the_likeliest(row: torch.Tensor) -> None:
    for sampling in (Sampling(), Sampling(temperature=0), Sampling(temperature=2, top_k=1)):
        assert is_greedy(sampling)
        assert sample(row, sampling, 3) == int(row.argmax())


@given(ROWS, SEEDS, st.integers(0, 1000), st.floats(1e-9, 100), st.integers(2, 50), st.floats(0.01, 1))
def test_a_draw_comes_from_the_nucleus_of_the_top_k(
    row: torch.Tensor, seed: int, position: int, temperature: float, top_k: int, top_p: float
) -> None:
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    token = sample(row, sampling, position)
    weights = torch.exp((row - row.max()) / temperature).double().tolist()  # float32, as the logits are
    best = sorted(weights, reverse=True)[:top_k]
    before = 0.0
    kept = []
    for weight in best:
        if before >= top_p * sum(best) * (1 + 1e-9):
            break
        kept.append(weight)
        before += weight
    assert weights[token] >= kept[-1] * (1 - 1e-9)


@given(ROWS, SEEDS, st.integers(0, 1000))
def test_the_same_seed_and_position_draw_the_same_token(row: torch.Tensor, seed: int, position: int) -> None:
    sampling = Sampling(temperature=1, top_p=0.9, seed=seed)
    assert sample(row, sampling, position) == sample(row.clone(), sampling, position)


def test_draws_follow_the_distribution() -> None:
    row = torch.tensor([0.5, 0.3, 0.2]).log()
    counts = Counter(sample(row, Sampling(temperature=1, seed=1), position) for position in range(10_000))
    assert [round(counts[token] / 10_000, 1) for token in range(3)] == [0.5, 0.3, 0.2]


def test_a_low_temperature_approaches_greedy() -> None:
    row = torch.tensor([1.0, 2.0, 1.9])
    assert {sample(row, Sampling(temperature=0.001, seed=1), position) for position in range(100)} == {1}


@settings(max_examples=20)
@given(SEEDS)
def test_top_p_of_a_flat_distribution_reaches_past_the_likeliest_few(seed: int) -> None:
    row = torch.zeros(4 * LIKELY)
    draws = {sample(row, Sampling(temperature=1, top_p=0.75, seed=seed), position) for position in range(50)}
    assert len(draws) > 40


def test_tokens_of_no_weight_are_never_drawn() -> None:
    row = torch.tensor([-math.inf, 0.0, -math.inf, 0.0, -math.inf])
    draws = {sample(row, Sampling(temperature=1, seed=2), position) for position in range(100)}
    assert draws == {1, 3}


@given(st.lists(st.lists(st.integers(-3, 3), min_size=5, max_size=5), max_size=4))
def test_the_likeliest_of_rows_is_the_first_that_has_the_maximum(rows: list[list[int]]) -> None:
    expected = [(max(row), row.index(max(row))) for row in rows]
    for dtype in (torch.float32, torch.bfloat16):  # one for each implementation
        assert likeliest_of(torch.tensor(rows, dtype=dtype).view(len(rows), 5)) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_maximum_of_a_row_with_what_is_no_number_is_none(dtype: torch.dtype) -> None:
    ((first, _), (second, place)) = likeliest_of(
        torch.tensor([[1.0, math.nan, 3.0], [1.0, math.inf, 3.0]], dtype=dtype)
    )
    assert math.isnan(first)
    assert (second, place) == (math.inf, 1)


EXTREMES = [5e-324, 1e-310, 1e-45, 1.4e-45, 1e-40, 1e-38, 1e-9, 1.0, 100.0]


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40).map(torch.tensor),
    st.sampled_from([0, 1, 2**63 - 1]),
    st.sampled_from(EXTREMES) | st.floats(0, 100, exclude_min=True),
    st.sampled_from([None, 1, 2, 2**63 - 1]),
    st.sampled_from([None, 5e-324, 1e-300, 1e-16, 1 - 2**-53, 1.0]) | st.floats(0, 1, exclude_min=True),
)
def test_every_accepted_value_draws_a_token(
    row: torch.Tensor, seed: int, temperature: float, top_k: int | None, top_p: float | None
) -> None:
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(sampling), type=Sampling) == sampling
    token = sample(row, sampling, 2**40)
    assert 0 <= token < len(row)
    if temperature < 1e-38 and bool((row.abs() > 1e-30).all()):
        assert row[token] == row.max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", EXTREMES)
def test_a_temperature_of_next_to_nothing_takes_the_likeliest(dtype: torch.dtype, temperature: float) -> None:
    row = torch.tensor([1.0, 3.0, 2.0, -math.inf], dtype=dtype)
    token = sample(row, Sampling(temperature=temperature, top_p=1.0, seed=1), 5)
    assert token == 1 or temperature >= 1
