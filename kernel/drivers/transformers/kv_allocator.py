"""Who gets memory for keys and values, in the order of admission, and what of it others have computed already.

Asked by `call_lifecycle` between steps. It never takes memory from a sequence: the kernel swaps out whom it chooses.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future

from ipc.errors import LimitExceeded
from kernel.drivers.transformers.attention import TILE
from kernel.drivers.transformers.kv import KVMemory
from kernel.drivers.transformers.prefix import NO_ROOM, SOON, PrefixCache
from kernel.drivers.transformers.prefix_disk_cache import Data, DiskRead
from kernel.drivers.transformers.radix import common
from kernel.drivers.transformers.request import EngineRequest


class KVAllocator:
    """`quota`: bytes that the works of one process may have together, None for no bound.

    `waiting` counts the works that the last `give` had no memory for; `asked` and `hit` tokens of prompts, of which so
    many were found computed. `fetches`: what is to be read from the disk, for whoever does that.
    """

    def __init__(self, memory: KVMemory, quota: int | None = None, cache: PrefixCache | None = None) -> None:
        self.memory = memory
        self.cache = cache or PrefixCache(memory)
        self.fetches: list[DiskRead] = []
        self.waiting = self.asked = self.hit = 0
        self._quota = quota
        self._of_process: dict[int, int] = {}  # bytes

    def check(self, work: EngineRequest) -> None:
        """Raises `LimitExceeded` if `work` can never have the memory that it may need."""
        size = self.memory.size(work.capacity)
        for limit, bound in (("kv_memory", self.memory.budget), ("kv_quota", self._quota)):
            if bound is not None and size > bound:
                raise LimitExceeded(
                    f"{work.capacity} tokens need {size} bytes of keys and values, and {bound} are allowed ({limit}); "
                    f"lower max_tokens, shorten the prompt or raise the model's option {limit}",
                    limit=limit,
                    maximum=bound,
                    wanted=size,
                )

    def give(self, works: Iterable[EngineRequest], running: Iterable[EngineRequest]) -> list[EngineRequest]:
        """Give slabs to `works`, in their order, as far as memory goes; those that got one.

        One for which there is no memory holds up those after it, one of a process at its quota those of that process.
        One whose prompt one of `running` is computing just now, or is being read from the disk, waits for that, and
        holds up nobody.
        """
        leaders = [work for work in running if work.done < work.keepable]
        placed = []
        self.waiting = 0
        full = False
        promised = 0  # bytes, to those whose prompts are being read
        over: set[int] = set()  # processes at their quota
        for work in works:
            if full or work.process in over:
                self.waiting += 1
            elif self._is_led(work, leaders):
                continue
            elif not self._within_quota(work):
                over.add(work.process)
                self.waiting += 1
            elif (coming := self._coming(work, promised)) == SOON:
                promised += self._own(work)
            elif coming != NO_ROOM and self._place(work, promised):
                placed.append(work)
                if work.done < work.keepable:
                    leaders.append(work)
            else:
                full = True
                self.waiting += 1
        return placed

    def computed(self, work: EngineRequest, before: int) -> None:
        """`work` has computed more tokens than the `before`: if its prompt is through, keep that."""
        if before < work.keepable <= work.done and work.slab is not None:
            self.cache.keep(work.slab, work.tokens[: work.keepable], work.process)

    def fetched(self, fetch: DiskRead, future: Future[Data]) -> None:
        """One of `fetches` was read, or could not be."""
        self.cache.fetched(fetch, None if future.exception() else future.result())

    def free(self, work: EngineRequest, *, keep: bool = True) -> None:
        """Take the slab of `work` back, if it has one.

        If `keep`, the cache keeps what its process is likely to want again. A prompt that found no room there before
        may find it now.
        """
        slab = work.slab
        if slab is None:
            return
        self.cache.release(slab)
        self.cache.think_times.left(work.process)
        left = self._of_process[work.process] - self.memory.size(slab.reserved)
        self.memory.yield_up(slab)
        if keep and work.process and work.done >= work.keepable:
            prompt = work.tokens[: work.keepable]
            if self.cache.longest(prompt) < len(prompt):
                self.cache.keep(slab, prompt, work.process)
        work.slab = None
        self.memory.free(slab)
        if left:
            self._of_process[work.process] = left
        else:
            del self._of_process[work.process]

    # ---- inside

    def _is_led(self, work: EngineRequest, leaders: list[EngineRequest]) -> bool:
        """Whether one of `leaders` will soon have computed more of the prompt of `work` than is kept."""
        wanted = work.tokens[: work.reusable]
        kept = self.cache.longest(wanted)
        for leader in leaders:
            shared = common(leader.tokens[: leader.keepable], wanted)
            if shared < kept + TILE:
                continue
            if leader.done < shared:
                return True
            assert leader.slab is not None
            self.cache.keep(leader.slab, wanted[:shared], leader.process)
            kept = shared
        return False

    def _own(self, work: EngineRequest) -> int:
        """Bytes that it may need besides what is kept of its prompt."""
        return self.memory.size(work.capacity - self.cache.longest(work.tokens[: work.reusable]))

    def _within_quota(self, work: EngineRequest) -> bool:
        if self._quota is None:
            return True
        return self._of_process.get(work.process, 0) + self._own(work) <= self._quota

    def _coming(self, work: EngineRequest, promised: int) -> str:
        """Whether the part of its prompt on disk is being read, or could be if others gave memory back.

        Memory that is promised to others is left alone.
        """
        if work.swapped or not self.memory.free_slabs:
            return ""
        found = self.cache.fetch(work.tokens[: work.reusable], self._own(work) + promised)
        if isinstance(found, DiskRead):
            self.fetches.append(found)
            return SOON
        if found == NO_ROOM and not self.memory.used and not promised:
            return ""  # nobody will give any back: it is computed
        return found

    def _place(self, work: EngineRequest, promised: int) -> bool:
        """Give `work` a slab that begins with what is kept of its prompt, if there is memory that is not promised."""
        if not self.memory.free_slabs:
            return False
        wanted = work.tokens[: work.reusable]
        # What is found must not be evicted to make room for the rest: it is held first, and the slab costs nothing.
        slab = self.memory.allocate(0)
        found = self.cache.hold(slab, wanted)
        if not self.cache.make_room(self.memory.size(work.capacity - found) + promised):
            self.cache.release(slab)
            found = 0
            # If nobody can give memory back, all that is kept goes, also what this one begins with, and what is shared.
            if self.memory.used or not self.cache.make_room(self.memory.size(work.capacity), shared=True):
                self.memory.free(slab)
                return False
        self.cache.think_times.called(work.process, work.expected_think_time)
        self.cache.use(slab, wanted[:found], work.process)
        self.memory.reserve(slab, work.capacity - found)
        self._of_process[work.process] = self._of_process.get(work.process, 0) + self.memory.size(slab.reserved)
        work.slab = slab
        self.asked += work.prompt
        self.hit += found
        return True
