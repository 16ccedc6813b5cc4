"""Invariants of a kernel in which no thread is ready, and of one in which no process is left.

Called by `play` at quiet moments, after each round of a seed, and at its end. Each check yields a sentence for each
problem; it never asserts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from ipc.syscalls import DOWN
from kernel.core.fiber import BLOCKED
from kernel.core.mailbox import CONTROL
from kernel.core.process import Thread
from kernel.kernel import Kernel
from kernel.models.sequence import QUEUED
from kernel.sync.barrier import Barrier
from kernel.sync.event import Event
from kernel.sync.lock import Lock
from kernel.sync.semaphore import Semaphore
from tests.support.exploration import inside, waits
from tests.support.exploration.ledger import Ledger
from tests.support.exploration.priorities import wrong_priorities
from tests.support.exploration.visitors import Visitor


def quiet(kernel: Kernel) -> bool:
    """Whether no thread is ready, and no process is held back or dying."""
    return not inside.dispatcher(kernel).anyone_ready and not any(
        process.held_back is not None or process.dying for process in kernel.table.alive.values()
    )


def at_a_quiet_moment(kernel: Kernel) -> Iterator[str]:
    """No thread is ready: each waiting thread must wait for something that has not happened yet."""
    yield from _mailboxes(kernel)
    yield from waits.waits(kernel)
    yield from waits.knots(kernel)
    yield from _held(kernel)
    yield from _slots(kernel)
    yield from wrong_priorities(kernel.table.alive.values())


def at_rest(kernel: Kernel, ledger: Ledger, visitors: list[Visitor]) -> Iterator[str]:
    """All time limits have passed: each waiting thread must wait for something that may never happen."""
    yield from at_a_quiet_moment(kernel)
    yield from waits.all_time_has_passed(kernel)
    yield from _messages(kernel, ledger)
    yield from _processes(kernel)
    yield from _names_and_topics(kernel)
    yield from _links_and_monitors(kernel, ledger)
    yield from _timers(kernel)
    yield from _visitors(visitors)
    if ledger.promises:
        yield f"these time limits have passed without effect: {ledger.promises}"


def when_all_is_over(kernel: Kernel, ledger: Ledger, visitors: list[Visitor]) -> Iterator[str]:
    """All processes have been killed: no table may hold anything of them."""
    yield from at_rest(kernel, ledger, visitors)
    tables: dict[str, Any] = {
        "processes": kernel.table.alive,
        "threads": [task for task in asyncio.all_tasks() if isinstance(task, Thread)],
        "synchronisation objects": [
            one for one in inside.named(kernel).values() if not (isinstance(one, Event) and one.is_set)
        ],
        "names": kernel.names._holders,
        "holders of names": kernel.names._names,
        "topics": kernel.publication._topics._root.next,
        "subscribers": kernel.publication._topics._patterns,
        "bytes in mailboxes": range(kernel.messaging.memory.used),
        "timers of full mailboxes": kernel.messaging.room._timers,
        "outcomes of children": kernel.table.outcomes,
        "publications": kernel.publication._queue._queue,
        "links": kernel.links._links,
        "monitors": kernel.links._monitors,
        "held monitors": kernel.links._refs_of_holder,
        "watched by monitors": kernel.links._refs_of_target,
        "private memory": kernel.memory._stores,
        "ready threads": [thread for queue in inside.dispatcher(kernel)._ready.values() for thread in queue],
        "timers": [entry for entry in inside.dispatcher(kernel).timers._heap if not entry[2].over],
    }
    for runtime in kernel.resources._runtimes.values():
        tables |= {
            "sequences": runtime.active.sequences,
            "taken slots": runtime.active.leases.taken,
            "queue": runtime.active.leases.queue,
        }
    for what, table in tables.items():
        if table:
            yield f"{what} are left: {table}"
    if unread := [number for number in ledger.put if not ledger.received[number] + ledger.buried[number]]:
        lost = [number for number in unread if ledger.put[number].correlation not in ledger.taken_back]
        if lost:
            yield f"messages {lost} were lost"


# ---- messages


def _messages(kernel: Kernel, ledger: Ledger) -> Iterator[str]:
    waiting: dict[int, int] = {}
    for process in kernel.table.alive.values():
        for message in process.mailbox.peek() if process.mailbox is not None else ():
            waiting[message.id] = waiting.get(message.id, 0) + 1
    for number, message in ledger.put.items():
        places = ledger.received[number], ledger.buried[number], waiting.get(number, 0)
        if sum(places) != 1 and not (message.type == DOWN and message.correlation in ledger.taken_back):
            yield f"message {number} is not in one place: (received, buried, waiting) is {places}"
    if ledger.answers:
        yield f"the answers to {ledger.answers} were neither read nor buried"
    if missing := ledger.sent - ledger.put.keys():
        yield f"messages {missing} were reported as sent, but were put into no mailbox"


def _mailboxes(kernel: Kernel) -> Iterator[str]:
    for process in (*kernel.table.alive.values(), *kernel.table.ended.values()):
        box = process.mailbox
        if box is None:
            continue
        within = sum(message.priority != CONTROL for message in box.peek())
        if box.taken != within:
            yield f"the mailbox of process {process.pid} counts {box.taken} places taken, but holds {within} messages"
        if within > box.capacity:
            yield f"the mailbox of process {process.pid} holds {within} messages, but has room for {box.capacity}"
        if box.senders and box.taken < box.capacity and not box.bytes:
            yield f"the mailbox of process {process.pid} has room, but {len(box.senders)} threads wait for it"
        if process.ended and (box.senders or box.further or box.receiver or not box.closed):
            yield f"process {process.pid} has ended, but its mailbox is open or has waiters"
        for waiter in (*box.senders, box.receiver, *(box.further or ())):
            if waiter is not None and waiter.state is not BLOCKED:
                yield f"{waiter} is not blocked, but is queued at the mailbox of process {process.pid}"


# ---- processes and threads


def _processes(kernel: Kernel) -> Iterator[str]:
    alive = kernel.table.alive
    for pid, process in alive.items():
        if process.pid != pid or process.ended:
            yield f"the table lists process {process.pid} as {pid}, ended: {process.ended}"
        if process.parent is not None and (process.parent.ended or process not in process.parent.children):
            yield f"process {pid} and its parent {process.parent.pid} do not know each other"
        for child in process.children:
            if child.parent is not process or child.ended:
                yield f"process {pid} lists child {child.pid}, which has ended or has another parent"
        for thread in process.threads:
            if thread.done() or thread.process is not process:
                yield f"process {pid} lists {thread}, which has ended or is of another process"
        if process.program == "ward" and not any(
            str(thread.waits_for) == "children" for thread in (process.parent.threads if process.parent else ())
        ):
            yield f"process {pid} has survived its supervisor"
        if process.dying:
            yield f"process {pid} has been dying without end ({process.dying})"
        if not (process.threads or process.is_client):
            yield f"process {pid} is alive, but has no thread"
        if process.held_back is not None:
            yield f"threads {process.held_back} of process {pid} are held back, but nothing is suspended"


# ---- what is held


def _held(kernel: Kernel) -> Iterator[str]:
    for name, one in inside.named(kernel).items():
        if one.idle:
            yield f"{one.kind} {name} is idle, but is still in the table"
        if isinstance(one, Lock) and one.holder is not None and one not in (one.holder.holds or ()):
            yield f"{one.holder} does not know that it holds lock {name}"
        if isinstance(one, Lock | Semaphore):
            holders = [one.holder] if isinstance(one, Lock) else list(one._holders)
            for holder in holders:
                if holder is not None and holder.done():
                    yield f"{one.kind} {name} is held by {holder}, which has ended"
        if isinstance(one, Semaphore) and one._free + sum(one._holders.values()) != one.permits:
            yield f"semaphore {name} has {one._free} permits free and {one._holders} of {one.permits}"
        if isinstance(one, Barrier) and len(one._waiting) >= one.parties:
            yield f"barrier {name} did not open"
    for process in kernel.table.alive.values():
        for thread in process.threads:
            for held in thread.holds or ():
                if not (held.holder is thread if isinstance(held, Lock) else thread in held._holders):  # type: ignore[attr-defined]
                    yield f"{thread} believes that it holds {held}"


def _slots(kernel: Kernel) -> Iterator[str]:
    for runtime in kernel.resources._runtimes.values():
        slots = runtime.active.leases
        if len(slots.taken) > slots.count:
            yield f"{len(slots.taken)} of {slots.count} slots are taken"
        if slots.taken - runtime.active.sequences.keys():
            yield f"slots are taken by {slots.taken}, of which only {runtime.active.sequences.keys()} exist"
        ids = [sequence.id for sequence in slots.queue]
        if len(set(ids)) < len(ids) or any(sequence.state is not QUEUED for sequence in slots.queue):
            yield f"the queue for slots is wrong: {[(one.id, one.state) for one in slots.queue]}"
        for sequence in runtime.active.sequences.values():
            if sequence.finished and not sequence.cancelled:
                yield f"sequence {sequence.id} is over, but is still in the table"
    for process in kernel.table.alive.values():
        for sequence in kernel.resources.calls.of_process(process):
            if sequence.finished or sequence.thread.done():
                yield f"process {process.pid} still has sequence {sequence.id}, which is over"


# ---- names, topics, links and monitors


def _names_and_topics(kernel: Kernel) -> Iterator[str]:
    names = kernel.names
    for name, holder in names._holders.items():
        if holder.ended or name not in names._names[holder]:
            yield f"{name!r} is the name of process {holder.pid}, ended: {holder.ended}"
    for holder, held in names._names.items():
        if any(names._holders.get(name) is not holder for name in held):
            yield f"process {holder.pid} believes that it has the names {held}"
    for subscriber in kernel.publication._topics._patterns:
        if subscriber.ended:
            yield f"process {subscriber.pid} has ended, but still subscribes"


def _links_and_monitors(kernel: Kernel, ledger: Ledger) -> Iterator[str]:
    alive = kernel.table.alive
    for dead, peer in ledger.torn:
        if peer in alive:
            yield f"process {dead} ended badly, but process {peer}, which was linked to it, is alive"
    links = kernel.links
    for ref, (holder, target) in links._monitors.items():
        if holder.ended or target.ended:
            yield f"monitor {ref} of {target.pid} by {holder.pid} has outlived one of them"
    for process, peers in links._links.items():
        if process.ended or any(peer.ended for peer in peers):
            yield f"process {process.pid} is linked to {[peer.pid for peer in peers]}, but not all of them are alive"
    notices: dict[int, int] = {}
    for message in ledger.put.values():
        if message.type == DOWN and message.priority == CONTROL:
            notices[message.correlation] = notices.get(message.correlation, 0) + 1
    for ref, (watcher, watched) in ledger.monitors.items():
        if watcher in alive and ref not in ledger.taken_back and notices.get(ref, 0) != (watched not in alive):
            yield f"process {watcher} got {notices.get(ref, 0)} notices of the end of {watched} (monitor {ref})"


def _timers(kernel: Kernel) -> Iterator[str]:
    timers = inside.dispatcher(kernel).timers
    over = sum(alarm.over for _, _, alarm in timers._heap)
    if timers._cancelled != over:
        yield f"{timers._cancelled} timers are counted as cancelled, and {over} are"


def _visitors(visitors: list[Visitor]) -> Iterator[str]:
    for visitor in visitors:
        connection = visitor.connection
        process = connection._process
        if process is not None and not visitor.here and not process.ended:
            yield f"process {process.pid} is alive, but its visitor has left"
        if process is not None and len(process.threads) > len(connection._threads):
            yield f"requests that visitor {process.pid} abandoned go on: {list(process.threads)}"
        if late := [call for call in visitor.asked.values() if getattr(call, "timeout", None) is not None]:
            yield f"these requests had a time limit, and were not answered: {late}"
        if unanswered := [n for n in visitor.asked if n not in connection._threads]:
            yield f"no thread is about to answer the requests {[visitor.asked[n] for n in unanswered]}"
