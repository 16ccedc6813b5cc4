"""The trials that make tokens exact find planted faults, and the counts and lengths that they call safe are safe.

A planted fault is a kernel that gives a row other bits at some counts of rows, as real ones do on some machines.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="trials are made with tensors (extra `local`)")

from torch.nn.functional import gelu, silu  # noqa: E402

from kernel.drivers.transformers import attention, batch_invariance, linear  # noqa: E402
from kernel.drivers.transformers.attention import BLOCK, SafeLengths  # noqa: E402
from kernel.drivers.transformers.batch_invariance import CANDIDATES, RowCounts, safe_activation_counts, safe_row_counts  # noqa: E402
from kernel.drivers.transformers.decoder import gated  # noqa: E402
from kernel.drivers.transformers.kv import UNIT, Geometry  # noqa: E402

SHAPES = [(48, 32), (32, 64)]
GEOMETRY = Geometry(layers=2, heads=2, head_dim=16, dtype=torch.float32)


def exact(rows: Any, weight: Any) -> Any:
    """A matrix product that gives a row the same bits in any company."""
    return torch.stack([(weight.double() * row.double()).sum(1).float() for row in rows])


def faulty(wrong: Callable[[int, int], bool]) -> linear.Pack:
    """Packs a kernel whose row `place` of `count` is off by one bit where `wrong(place, count)`."""

    def pack(weight: Any, bias: Any) -> linear.Linear:
        def layer(rows: Any) -> Any:
            found = rows @ weight.t() * 0 + torch.cat([rows, rows], 1).sum(
                1, keepdim=True
            )  # cheap, and the same for all counts
            for place in range(len(rows)):
                if wrong(place, len(rows)):
                    found[place] = torch.nextafter(found[place], torch.tensor(torch.inf))
            return found

        return layer

    return pack


def test_all_counts_are_safe_for_a_kernel_without_faults() -> None:
    assert safe_row_counts([(4, 32)], lambda weight, bias: lambda rows: exact(rows, weight)) == CANDIDATES


@pytest.mark.parametrize(
    ("wrong", "safe"),
    [
        (lambda place, count: count in (1, 2, 7, 14), lambda count: count not in (1, 2, 7, 14)),
        (lambda place, count: count < 12 and count not in (4, 8), lambda count: count >= 12 or count in (4, 8)),
        (lambda place, count: place == count - 1 and count % 6 == 1, lambda count: count % 6 != 1),  # the last row
        (lambda place, count: place == 40 and count > 100, lambda count: count <= 100),  # one row of many
        (lambda place, count: count > 64, lambda count: count <= 64),
        (lambda place, count: count <= 64, lambda count: count <= 64),  # these agree with each other
    ],
)
def test_counts_at_which_a_row_has_other_bits_are_found(
    wrong: Callable[[int, int], bool], safe: Callable[[int], bool]
) -> None:
    assert safe_row_counts(SHAPES, faulty(wrong)) == tuple(count for count in CANDIDATES if safe(count))


def test_a_kernel_whose_rows_depend_on_their_place_has_no_safe_counts() -> None:
    assert safe_row_counts([(4, 32)], faulty(lambda place, count: place % 5 == 0)) == ()


def test_one_matrix_that_is_at_fault_is_enough() -> None:
    def pack(weight: Any, bias: Any) -> linear.Linear:
        return faulty(lambda place, count: count == 24 and weight.shape[1] == 64)(weight, bias)

    assert safe_row_counts(SHAPES, pack) == tuple(count for count in CANDIDATES if count != 24)


@given(st.sets(st.sampled_from(CANDIDATES), min_size=1).map(sorted))
def test_a_padded_count_is_the_smallest_safe_one_that_is_enough(safe: list[int]) -> None:
    counts = RowCounts(tuple(safe))
    assert counts.largest == max(safe)
    for count in (1, 2, 31, 33, safe[-1] - 1, safe[-1]):
        if 0 < count <= counts.largest:
            assert counts.padded(count) == min(found for found in safe if found >= count)


@pytest.mark.parametrize("kernel", linear.CPU_KERNELS)
def test_what_is_called_safe_is_safe_beside_other_rows(kernel: str) -> None:
    counts = safe_row_counts([(96, 64)], linear.CPU_KERNELS[kernel])
    generator = torch.Generator().manual_seed(7)
    layer = linear.CPU_KERNELS[kernel](torch.randn(96, 64, generator=generator), None)
    row = torch.randn(64, generator=generator)
    found = set()
    for count in counts:
        rows = torch.randn(count, 64, generator=generator)
        place = int(torch.randint(count, (1,), generator=generator))
        rows[place] = row
        found.add(layer(rows)[place].numpy().tobytes())
    assert len(found) == 1


# ---- elementwise functions


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("size", [96, 100, 4864])
def test_the_decoders_activation_has_the_same_bits_at_any_count_of_rows(
    threads: Callable[[int], None], count: int, size: int
) -> None:
    threads(count)
    rows = torch.randn(160, 2 * size, generator=torch.Generator().manual_seed(3)) * 3
    alone = torch.cat([gated(row) for row in rows.split(1)])
    assert all(torch.equal(gated(rows[:many]), alone[:many]) for many in (2, 3, 14, 16, 17, 31, 87, 160))
    gate, up = rows.chunk(2, dim=1)
    assert torch.allclose(alone, silu(gate) * up, atol=1e-5)


def test_the_decoders_activation_knows_no_overflow() -> None:
    rows = torch.tensor([[-1e4, -200.0, 200.0, 1e4, 1.0, 1.0, 1.0, 1.0]])
    assert gated(rows).tolist() == [[0.0, 0.0, 200.0, 1e4]]


@pytest.mark.parametrize("count", [1, 3, 7])
@pytest.mark.parametrize("activation", [silu, gelu])
def test_counts_at_which_an_activation_has_other_bits_are_found(
    threads: Callable[[int], None], activation: Any, count: int
) -> None:
    threads(count)
    safe = safe_activation_counts(activation, 4864)
    rows = torch.randn(512, 4864, generator=torch.Generator().manual_seed(5))
    longest = activation(rows[: safe[-1]])
    assert all(torch.equal(activation(rows[:many]), longest[:many]) for many in safe)


def test_an_activation_that_slips_at_the_end_of_some_counts_is_found() -> None:
    def slipping(rows: Any) -> Any:
        found = rows * 2
        if (found.ndim < 2 and len(found) == 1) or (found.ndim == 2 and len(rows) % 16 == 8):
            last = found.flatten()[-1:]
            last.copy_(torch.nextafter(last, torch.tensor(torch.inf)))
        return found

    assert safe_activation_counts(slipping, 32) == tuple(count for count in CANDIDATES if count % 16 != 8)
    assert safe_activation_counts(lambda rows: rows * 2, 32) == CANDIDATES


# ---- attention


def test_what_is_called_a_safe_length_is_found_with_the_real_kernel() -> None:
    safe = batch_invariance.safe_lengths(GEOMETRY, 2)
    assert set(safe) <= set(range(UNIT, BLOCK + 1, UNIT))


@pytest.mark.parametrize("bad", [{96}, {32, 64, 512}, {224, 256, 288, 320, 352}])
def test_lengths_at_which_a_token_has_other_bits_are_found(monkeypatch: pytest.MonkeyPatch, bad: set[int]) -> None:
    def attend(asked: Any, keys: Any, values: Any, attn_mask: Any, scale: float) -> Any:
        found = even(asked, keys, values, attn_mask, scale)
        if keys.shape[2] % BLOCK in {length % BLOCK for length in bad}:
            found = torch.nextafter(found, torch.tensor(torch.inf))
        return found

    monkeypatch.setattr(attention, "scaled_dot_product_attention", attend)
    others = set(range(UNIT, BLOCK + 1, UNIT)) - bad
    assert set(batch_invariance.safe_lengths(GEOMETRY, 2)) == (
        bad if BLOCK in bad else others
    )  # a length is safe if it gives the numbers of the longest


def test_where_a_token_depends_on_the_size_of_its_batch_no_length_is_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    def attend(asked: Any, keys: Any, values: Any, attn_mask: Any, scale: float) -> Any:
        found = even(asked, keys, values, attn_mask, scale)
        return found if len(asked) > 1 else torch.nextafter(found, torch.tensor(torch.inf))

    monkeypatch.setattr(attention, "scaled_dot_product_attention", attend)
    assert SafeLengths(batch_invariance.safe_lengths(GEOMETRY, 2)).safe == ()


def even(asked: Any, keys: Any, values: Any, mask: Any, scale: float) -> Any:
    """Attention whose numbers do not depend on padding: it sums in double precision and rounds coarsely."""
    scores = asked.double() @ keys.double().transpose(2, 3) * scale + mask.double()
    found = (scores.softmax(-1) @ values.double()).float()
    return (found * 4096).round() / 4096
