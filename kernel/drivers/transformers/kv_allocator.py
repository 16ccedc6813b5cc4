"""Gives KV memory to requests in the order of admission, beginning with the cached prefix of their prompts.

`call_lifecycle` calls it between steps. It never takes memory from a sequence: the kernel chooses the sequence to swap
out.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future

from ipc.errors import LimitExceeded
from kernel.drivers.protocol import KVUsage
from kernel.drivers.transformers.attention import TILE
from kernel.drivers.transformers.kv import KVMemory
from kernel.drivers.transformers.prefix import NO_ROOM, SOON, PrefixCache
from kernel.drivers.transformers.prefix_disk_cache import Data, DiskRead
from kernel.drivers.transformers.radix import common
from kernel.drivers.transformers.request import EngineRequest


class KVAllocator:
    """Gives slabs to requests. `quota`: bytes that the requests of one process may have together, None for no bound.

    `waiting`: how many requests the last `allocate` had no memory for. `asked`: tokens of all prompts that got memory
    so far; `hit`: how many of these tokens the prefix cache had. `disk_reads`: reads of prefixes, which the caller must
    take from here and run.
    """

    def __init__(self, memory: KVMemory, quota: int | None = None, cache: PrefixCache | None = None) -> None:
        self.memory = memory
        self.cache = cache or PrefixCache(memory)
        self.disk_reads: list[DiskRead] = []
        self.waiting = self.asked = self.hit = 0
        self._quota = quota
        self._of_process: dict[int, int] = {}  # bytes of each process

    def check(self, capacity: int) -> None:
        """Raise `LimitExceeded` if a request of up to `capacity` tokens needs more memory than it can ever get."""
        size = self.memory.size(capacity)
        for limit, bound in (("kv_memory", self.memory.budget), ("kv_quota", self._quota)):
            if bound is not None and size > bound:
                raise LimitExceeded(
                    f"{capacity} tokens need {size} bytes of KV memory, and {limit} allows {bound}; "
                    f"lower max_tokens, shorten the prompt or raise the model's option {limit}",
                    limit=limit,
                    maximum=bound,
                    wanted=size,
                )

    def allocate(self, requests: Iterable[EngineRequest], running: Iterable[EngineRequest]) -> list[EngineRequest]:
        """Give slabs to `requests`, in their order, while there is memory. Returns the requests that got one.

        A request that does not fit holds up all requests after it. A request of a process at its quota holds up only
        the requests of that process. Two kinds of requests wait without holding up any other: those whose prompt begins
        with tokens that one of `running` computes now, or with tokens that are being read from disk.
        """
        leaders = [request for request in running if request.done < request.cacheable]
        placed = []
        self.waiting = 0
        full = False
        promised = 0  # bytes set aside for the requests whose prompts are being read from disk
        at_quota: set[int] = set()  # processes
        for request in requests:
            if full or request.process in at_quota:
                self.waiting += 1
            elif self._waits_for_leader(request, leaders):
                continue
            elif not self._within_quota(request):
                at_quota.add(request.process)
                self.waiting += 1
            elif (state := self._start_disk_read(request, promised)) == SOON:
                promised += self._new_bytes(request)
            elif state != NO_ROOM and self._place(request, promised):
                placed.append(request)
                if request.done < request.cacheable:
                    leaders.append(request)
            else:
                full = True
                self.waiting += 1
        return placed

    def computed(self, request: EngineRequest, before: int) -> None:
        """Cache the prompt of `request` if the last step completed it. Before the step, `before` tokens had KV."""
        if before < request.cacheable <= request.done and request.slab is not None:
            self.cache.insert(request.slab, request.tokens[: request.cacheable], request.process)

    def finish_disk_read(self, read: DiskRead, future: Future[Data]) -> None:
        """Pass the outcome of `read`, which was one of `disk_reads`, to the cache."""
        self.cache.finish_read(read, None if future.exception() else future.result())

    def free(self, request: EngineRequest, *, cache: bool = True) -> None:
        """Take the slab of `request` back, if it has one.

        If `cache` is set, put the prompt into the prefix cache unless it is there: its process is likely to want it
        again, and if there was no room for it before, it may fit now.
        """
        slab = request.slab
        if slab is None:
            return
        self.cache.unpin(slab)
        self.cache.expected_returns.call_ended(request.process)
        left = self._of_process[request.process] - self.memory.size(slab.reserved)
        self.memory.unreserve(slab)  # so that the cache may use this memory for the prompt
        if cache and request.process and request.done >= request.cacheable:
            prompt = request.tokens[: request.cacheable]
            if self.cache.match_length(prompt) < len(prompt):
                self.cache.insert(slab, prompt, request.process)
        request.slab = None
        self.memory.free(slab)
        if left:
            self._of_process[request.process] = left
        else:
            del self._of_process[request.process]

    def usage(self) -> KVUsage:
        """The state of the KV memory, as bundles report it."""
        cache = self.cache
        return KVUsage(
            self.memory.used,
            self.memory.cached,
            self.asked,
            self.hit,
            cache.evicted,
            self.waiting,
            cache.disk_cache.used,
            cache.reread,
        )

    # ---- inside

    def _waits_for_leader(self, request: EngineRequest, leaders: list[EngineRequest]) -> bool:
        """Whether one of `leaders` will soon have computed more of the prompt of `request` than is cached.

        If a leader has already computed more, cache that part.
        """
        wanted = request.tokens[: request.reusable]
        cached = self.cache.match_length(wanted)
        for leader in leaders:
            shared = common(leader.tokens[: leader.cacheable], wanted)
            if shared < cached + TILE:
                continue
            if leader.done < shared:
                return True
            assert leader.slab is not None
            self.cache.insert(leader.slab, wanted[:shared], leader.process)
            cached = shared
        return False

    def _new_bytes(self, request: EngineRequest) -> int:
        """Bytes that `request` may need besides the cached part of its prompt."""
        return self.memory.size(request.capacity - self.cache.match_length(request.tokens[: request.reusable]))

    def _within_quota(self, request: EngineRequest) -> bool:
        if self._quota is None:
            return True
        return self._of_process.get(request.process, 0) + self._new_bytes(request) <= self._quota

    def _start_disk_read(self, request: EngineRequest, promised: int) -> str:
        """If the next part of the prompt is on disk, add its read to `disk_reads`. Leave `promised` bytes free.

        Returns `SOON` while that part is being read, `NO_ROOM` if memory must be freed for it first, or "" if the
        request can be placed now.
        """
        if request.swapped or not self.memory.free_slabs:
            return ""
        found = self.cache.start_read(request.tokens[: request.reusable], self._new_bytes(request) + promised)
        if isinstance(found, DiskRead):
            self.disk_reads.append(found)
            return SOON
        if found == NO_ROOM and not self.memory.used and not promised:
            return ""  # no request holds memory that it could free: compute the prompt instead
        return found

    def _place(self, request: EngineRequest, promised: int) -> bool:
        """Give `request` a slab that begins with the cached part of its prompt. Returns False if memory is short.

        Leaves `promised` bytes free, which are for other requests.
        """
        if not self.memory.free_slabs:
            return False
        wanted = request.tokens[: request.reusable]
        # Pin the cached part first, so that it is not evicted to make room for the rest. An empty slab takes no memory.
        slab = self.memory.allocate(0)
        found = self.cache.pin(slab, wanted)
        if not self.cache.make_room(self.memory.size(request.capacity - found) + promised):
            self.cache.unpin(slab)
            found = 0
            # If no request has memory to free, evict even shared prefixes and the prefix that this prompt begins with.
            if self.memory.used or not self.cache.make_room(self.memory.size(request.capacity), shared=True):
                self.memory.free(slab)
                return False
        self.cache.expected_returns.call_started(request.process, request.expected_think_time)
        self.cache.use(slab, wanted[:found], request.process)
        self.memory.reserve(slab, request.capacity - found)
        self._of_process[request.process] = self._of_process.get(request.process, 0) + self.memory.size(slab.reserved)
        request.slab = slab
        self.asked += request.prompt
        self.hit += found
        return True
