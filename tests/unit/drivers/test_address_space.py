"""Where the system limits virtual memory, a model gets fewer slabs; where it leaves none, the limit is named."""

from __future__ import annotations

import resource

import psutil
import pytest

torch = pytest.importorskip("torch", reason="the driver runs torch models (extra `local`)")

from ipc.errors import ModelLoadFailed  # noqa: E402
from kernel.drivers.transformers import address_space  # noqa: E402
from kernel.drivers.transformers.kv import Geometry, KVMemory  # noqa: E402

GEOMETRY = Geometry(layers=2, heads=1, head_dim=16, dtype=torch.float32)
CPU = torch.device("cpu")
CAPACITY = 1024
SLAB = CAPACITY * GEOMETRY.token_bytes


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> int:
    """A limit of virtual memory that leaves room for ten slabs, next to the process's own memory and its reserve."""
    allowed = psutil.Process().memory_info().vms + (1 << 30)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (allowed, allowed))
    return allowed


@pytest.fixture
def small_system(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A system that maps at most ten slabs; the list gets the number of slabs of each attempt."""
    attempts: list[int] = []

    def memory(geometry: Geometry, capacity: int, slabs: int, device: torch.device, budget: int) -> KVMemory:
        attempts.append(slabs)
        if slabs > 10:
            raise OSError(12, "mmap: Cannot allocate memory")
        return KVMemory(geometry, capacity, slabs, device, budget)

    monkeypatch.setattr(address_space, "KVMemory", memory)
    return attempts


def test_without_a_limit_the_slabs_may_take_all_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert address_space.room() == address_space.ADDRESS_SPACE


def test_a_limit_leaves_half_of_the_rest_to_others(limited: int) -> None:
    assert abs(address_space.room() - (1 << 29)) < 1 << 28  # the process may grow a little meanwhile


def test_slabs_that_the_system_refuses_become_fewer(small_system: list[int]) -> None:
    memory = address_space.kv_memory(GEOMETRY, CAPACITY, CPU, 100 * SLAB)
    assert small_system == [100, 25, 6]
    assert memory.free_slabs == 6


def test_a_limit_that_is_too_low_is_named_with_advice(
    limited: int, small_system: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(address_space, "LEAST_SLABS", 11)
    with pytest.raises(ModelLoadFailed) as raised:
        address_space.kv_memory(GEOMETRY, CAPACITY, CPU, 100 * SLAB)
    assert f"the limit of {limited >> 20} MiB (ulimit -v) leaves no " in raised.value.message
    assert "raise the limit (systemd: LimitAS), or use a model with a shorter context" in raised.value.message


def test_a_system_that_refuses_without_a_limit_is_named(
    small_system: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    monkeypatch.setattr(address_space, "LEAST_SLABS", 11)
    with pytest.raises(ModelLoadFailed, match=r"the system leaves no .*; allow more virtual memory"):
        address_space.kv_memory(GEOMETRY, CAPACITY, CPU, 100 * SLAB)
