"""Swapped-out sequences: the KV read back equals the KV written, to the bit, and a damaged file is refused.

With any damage to its file, a sequence still continues with the tokens that it would have generated anyway.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the driver runs torch models (extra `local`)")

from ipc.syscalls import Sampling  # noqa: E402
from kernel.drivers.protocol import (  # noqa: E402
    Admit,
    Cancel,
    Done,
    Parked,
    Renew,
    Restored,
    Revoke,
    SwapOut,
    SwappedOut,
)
from kernel.drivers.transformers import swap_format  # noqa: E402
from kernel.drivers.transformers.pages import PAGE  # noqa: E402
from tests.support.resident import memory_of  # noqa: E402
from tests.support.tiny import Kernel, Letters, ready  # noqa: E402

LLAMA = ready("Llama")
PROMPT = "a prompt of some tokens, that is swapped out and in"
SAMPLING = Sampling(max_tokens=20, temperature=1, seed=4, logprobs=True)
WHOLE = Kernel(LLAMA).run(Admit(1, PROMPT, SAMPLING, 100))


def parked(lease: int = 7, prompt: str = PROMPT) -> Kernel:
    """A kernel with sequence 1 parked after `lease` tokens."""
    kernel = Kernel(LLAMA).run(Admit(1, prompt, SAMPLING, lease))
    assert kernel.sent[-1] == Parked(1)
    return kernel


def again(kernel: Kernel, path: Path | str, **changes: Any) -> Admit:
    """Admits the sequence that `kernel` ran again, swapped in from `path`."""
    fields = {"lease": 100, "prompt_ids": Letters().encode(PROMPT), "generated": kernel.ids[1]} | changes
    return Admit(1, "", SAMPLING, released=len(kernel.text[1]), swapped=str(path), **fields)


def swapped(path: Path, lease: int = 7) -> Kernel:
    kernel = parked(lease).run(SwapOut(1, str(path)))
    (out,) = kernel.of(SwappedOut)
    assert out.error is None
    return kernel


def goes_on(before: Kernel, after: Kernel) -> None:
    """Checks that both together generated what the sequence generates alone."""
    assert before.ids[1] + after.ids[1] == WHOLE.ids[1]
    assert before.text[1] + after.text[1] == WHOLE.text[1]
    assert before.logprobs[1] + after.logprobs[1] == WHOLE.logprobs[1]
    assert after.of(Done) == [Done(1, "length")]
    assert after.memory.used == 0


# ---- out and in


@pytest.mark.parametrize("lease", [1, 2, 7, 19])
def test_a_state_is_written_and_read_back_and_nothing_is_computed_twice(tmp_path: Path, lease: int) -> None:
    path = tmp_path / "state"
    before = swapped(path, lease)
    (out,) = before.of(SwappedOut)
    assert out.size == path.stat().st_size
    assert before.memory.used == 0
    assert [file.name for file in tmp_path.iterdir()] == ["state"]
    after = Kernel(LLAMA).run(again(before, path))
    goes_on(before, after)
    assert after.of(Restored) == [Restored(1, recomputed=False)]
    assert after.rows == 20 - lease


def test_keys_and_values_are_the_same_to_the_bit(tmp_path: Path) -> None:
    before = parked()
    (slab,) = [request.slab for request in before.calls._requests]
    assert slab is not None
    expected = before.memory.tokens(slab, 0, slab.length).clone()
    before.run(SwapOut(1, str(tmp_path / "state")))
    after = Kernel(LLAMA).run(again(before, tmp_path / "state", lease=1))
    (slab,) = [request.slab for request in after.calls._requests]
    assert slab is not None
    assert torch.equal(after.memory.tokens(slab, 0, expected.shape[1]).view(torch.int32), expected.view(torch.int32))


def test_the_same_driver_reads_what_it_wrote(tmp_path: Path) -> None:
    kernel = swapped(tmp_path / "state").run(Renew(1, 50))  # the driver has forgotten the sequence
    said = len(kernel.ids[1])
    kernel.run(again(kernel, tmp_path / "state"))
    assert said == 7
    assert kernel.ids[1] == WHOLE.ids[1]


def test_a_sequence_revoked_within_its_prompt_is_swapped_with_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "state"
    before = Kernel(LLAMA, most=32)
    before.during = {0: [Revoke(1), SwapOut(1, str(path))]}
    before.run(Admit(1, PROMPT, SAMPLING, 100))
    assert before.ids[1] == []
    after = Kernel(LLAMA).run(again(before, path))
    goes_on(before, after)
    assert after.rows == len(PROMPT) - 32 + 19


def test_a_sequence_that_has_no_memory_yet_can_be_swapped(tmp_path: Path) -> None:
    path = tmp_path / "state"
    before = Kernel(LLAMA).run(Admit(1, PROMPT, SAMPLING, 0), SwapOut(1, str(path)))
    assert before.batches == []
    after = Kernel(LLAMA).run(again(before, path))
    goes_on(before, after)
    assert after.of(Restored) == [Restored(1, recomputed=False)]


def test_a_state_that_was_not_read_yet_survives_another_swap(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    before = swapped(first)
    size = first.stat().st_size
    kernel = Kernel(LLAMA).run(again(before, first, lease=0), SwapOut(1, str(second)))
    assert [out.size for out in kernel.of(SwappedOut)] == [size]
    after = Kernel(LLAMA).run(again(before, second))
    goes_on(before, after)
    assert after.of(Restored) == [Restored(1, recomputed=False)]
    assert after.rows == 13


def test_a_state_shares_the_memory_of_a_beginning_that_is_kept(tmp_path: Path) -> None:
    before = swapped(tmp_path / "state")
    kernel = Kernel(LLAMA).run(Admit(2, PROMPT, Sampling(max_tokens=1), 1))
    assert kernel.memory._range is not None
    kernel.run(again(before, tmp_path / "state", lease=1))
    (sequence,) = kernel.calls._requests
    assert sequence.slab is not None
    assert sequence.slab.mappings
    own = memory_of(kernel.memory._range, "Anonymous")
    assert own == 2 * PAGE  # in each layer the page in which the prompt ends
    kernel.run(Renew(1, 100))
    assert before.ids[1] + kernel.ids[1] == WHOLE.ids[1]


# ---- failures


def test_only_a_parked_sequence_is_swapped(tmp_path: Path) -> None:
    kernel = Kernel(LLAMA)
    kernel.during = {3: [SwapOut(1, str(tmp_path / "state")), SwapOut(9, str(tmp_path / "nobody"))]}
    kernel.run(Admit(1, PROMPT, SAMPLING, 100))
    (out,) = kernel.of(SwappedOut)
    assert out.error is not None
    assert "not parked" in out.error.message
    assert kernel.ids[1] == WHOLE.ids[1]
    assert list(tmp_path.iterdir()) == []


def fail_to_open(patch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, flags: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    patch.setattr(swap_format, "open_private", refuse)


def fail_to_sync(patch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    patch.setattr(os, "fsync", refuse)


@pytest.mark.parametrize("fail", [fail_to_open, fail_to_sync])
def test_on_a_full_disk_a_sequence_stays_parked_in_memory_and_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail: Callable[[pytest.MonkeyPatch], None]
) -> None:
    kernel = parked()
    with monkeypatch.context() as patch:
        fail(patch)
        kernel.run(SwapOut(1, str(tmp_path / "state")))
    (out,) = kernel.of(SwappedOut)
    assert (out.size, out.error.code) == (0, "DriverFailed")
    assert "No space left" in out.error.message
    assert list(tmp_path.iterdir()) == []
    rows = kernel.rows
    kernel.run(Renew(1, 100))
    assert kernel.ids[1] == WHOLE.ids[1]
    assert kernel.rows - rows == 13


def test_where_there_is_no_folder_a_sequence_stays_parked(tmp_path: Path) -> None:
    kernel = parked().run(SwapOut(1, str(tmp_path / "none" / "state")), Renew(1, 100))
    assert [out.error is None for out in kernel.of(SwappedOut)] == [False]
    assert kernel.ids[1] == WHOLE.ids[1]


def damage(place: int) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[place] ^= 0x10
        path.write_bytes(content)

    return change


def cut(size: int) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, size)


def swapped_other(path: Path) -> None:
    parked(prompt="another prompt").run(SwapOut(1, str(path)))


@pytest.mark.parametrize(
    ("change", "changes", "words"),
    [
        (damage(-100), {}, "damaged: its checksum is wrong"),
        (damage(0), {}, "not a swap file of this version"),
        (damage(60), {}, ""),
        (cut(1000), {}, "damaged"),
        (cut(20), {}, "damaged"),
        (cut(3), {}, "not a swap file of this version"),
        (cut(0), {}, "not a swap file of this version"),
        (Path.unlink, {}, "No such file"),
        (lambda path: path.unlink() or path.mkdir(), {}, "Is a directory"),
        (lambda path: None, {"fingerprint": "another"}, "other weights"),
        (swapped_other, {}, "belongs to another sequence"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_the_reason_and_the_state_computed_anew(
    tmp_path: Path, change: Callable[[Path], None], changes: dict[str, Any], words: str
) -> None:
    path = tmp_path / "state"
    before = swapped(path)
    change(path)
    after = Kernel(LLAMA, **changes).run(again(before, path))
    goes_on(before, after)
    (restored,) = after.of(Restored)
    assert restored.recomputed
    assert restored.why
    assert words in restored.why
    assert after.rows == len(PROMPT) + 19


# ---- messages during a swap


def test_cancel_while_a_state_is_written_frees_its_memory(tmp_path: Path) -> None:
    kernel = parked().run(SwapOut(1, str(tmp_path / "state")), Cancel(1))
    assert kernel.of(Done) == [Done(1, "cancelled")]
    assert kernel.of(SwappedOut) == []
    assert kernel.memory.used == 0


def test_a_sequence_that_is_renewed_while_it_is_written_goes_on_when_that_is_through(tmp_path: Path) -> None:
    kernel = parked()
    rows = kernel.rows
    kernel.run(SwapOut(1, str(tmp_path / "state")), Renew(1, 100))
    (out,) = kernel.of(SwappedOut)
    assert "renewed" in out.error.message
    assert kernel.ids[1] == WHOLE.ids[1]
    assert kernel.rows - rows == 13


@pytest.mark.parametrize("message", [Cancel(1), Revoke(1)])
def test_a_sequence_can_be_taken_off_while_it_is_read(tmp_path: Path, message: Cancel | Revoke) -> None:
    before = swapped(tmp_path / "state")
    kernel = Kernel(LLAMA).run(again(before, tmp_path / "state"), message)
    assert kernel.batches == []
    if isinstance(message, Cancel):
        assert kernel.of(Done) == [Done(1, "cancelled")]
        assert kernel.memory.used == 0
    else:
        assert kernel.of(Parked) == [Parked(1)]
        goes_on(before, kernel.run(Renew(1, 100)))


def test_neighbours_run_while_a_state_is_written_and_read(tmp_path: Path) -> None:
    before = swapped(tmp_path / "state")
    neighbour = Admit(2, "a neighbour of the other", Sampling(max_tokens=15), 100)
    kernel = Kernel(LLAMA)
    kernel.during = {3: [again(before, tmp_path / "state", lease=5)], 9: [SwapOut(1, str(tmp_path / "other"))]}
    kernel.run(neighbour)
    assert kernel.ids[2] == Kernel(LLAMA).run(neighbour).ids[2]
    assert before.ids[1] + kernel.ids[1] == WHOLE.ids[1][:12]


def test_a_job_that_ends_while_the_engine_looks_whether_one_runs_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    swap_io = Kernel(LLAMA).calls.swap_io
    clock = time.perf_counter

    def ended() -> float:
        swap_io._jobs.clear()
        return clock()

    swap_io._jobs.append(clock())
    assert swap_io.works(0)
    monkeypatch.setattr("kernel.drivers.transformers.swap_io.time.perf_counter", ended)
    swap_io.works(0)
    assert not swap_io.works(0)


# ---- the file


def test_no_bit_of_a_file_can_change_unnoticed(tmp_path: Path) -> None:
    path = tmp_path / "state"
    kv = torch.randn(2, 3, 4)
    swap_format.write(path, kv, [1, 2, 3, 4], 2, "print")
    assert torch.equal(swap_format.read(path, [1, 2, 3, 4], 2, "print"), kv)
    content = path.read_bytes()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(swap_format.UnusableSwapFile):
            swap_format.read(path, [1, 2, 3, 4], 2, "print")


def test_a_file_that_is_written_over_is_the_old_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state"
    old, new = torch.zeros(2, 3, 4), torch.ones(2, 3, 4)
    swap_format.write(path, old, [1], 1, "print")
    with monkeypatch.context() as patch:
        fail_to_sync(patch)
        with pytest.raises(OSError, match="No space left"):
            swap_format.write(path, new, [1], 1, "print")
    assert torch.equal(swap_format.read(path, [1], 1, "print"), old)
    swap_format.write(path, new, [1], 1, "print")
    assert torch.equal(swap_format.read(path, [1], 1, "print"), new)
