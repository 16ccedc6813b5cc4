"""The play of one seed: rounds of chaos and rest, with checks at quiet moments, at each rest, and at the end.

Called by `tests/unit/test_interleavings.py`. It never asserts; it returns the problems that it found.
"""

from __future__ import annotations

import asyncio
import itertools
from contextlib import suppress

from ipc.errors import UnknownProcess, UnknownThread
from ipc.syscalls import Resume
from kernel.core.process import Process
from tests.support.exploration import invariants
from tests.support.exploration.cast import program
from tests.support.exploration.visitors import Visitor
from tests.support.exploration.world import World

ROUNDS = 2  # of chaos and rest
STEPS = 60  # of all actors together, in a round
AGES = 1000  # seconds after which everything with a time limit is over


async def play(world: World) -> list[str]:
    """Play one seed; return the problems that were found."""
    actor = program(world)
    for name in ("actor", "ward"):
        world.system.program(actor, name)
    jumps = itertools.count()
    problems = world.ledger.problems

    def check_if_quiet() -> None:
        if next(jumps) % 2 and not problems and invariants.quiet(world.kernel):
            problems.extend(invariants.at_a_quiet_moment(world.kernel))

    world.loop.before_jump = check_if_quiet
    with world.ledger.watching():
        for _ in range(ROUNDS):
            await _chaos(world)
            await _rest(world)
            world.ledger.note_usage()
            problems += invariants.at_rest(world.kernel, world.ledger, world.visitors)
            if problems:
                return problems
        await _end(world)
        world.ledger.note_usage()
        problems += invariants.when_all_is_over(world.kernel, world.ledger, world.visitors)
    await world.kernel.close()
    return problems


async def _chaos(world: World) -> None:
    """Start actors and let things happen to them, until they have taken their steps."""
    chance = world.chance
    world.steps = STEPS
    world.playing.set()
    for _ in range(chance.choice([2, 4, 6])):
        _start(world)
    while world.steps > 0:
        await asyncio.sleep(chance.choice([0, 0, 0.5, 1]))
        what = chance.choices(["nothing", "visit", "start", "driver dies"], [4, 8, 2, 1])[0]
        if what == "visit":
            _visitor(world).act()
        elif what == "start":
            _start(world)
        elif what == "driver dies" and world.launcher.drivers:
            world.trace("the driver dies")
            world.launcher.driver.die()
        world.steps -= 1
    world.playing.clear()


async def _rest(world: World) -> None:
    """Resume all suspended processes and threads, and let all time limits pass."""
    world.trace("---- rest")
    for visitor in world.visitors:
        visitor.read_everything()
    for _ in range(3):
        for process in tuple(world.kernel.table.alive.values()):
            await _resume(world, process)
        await asyncio.sleep(AGES)


async def _end(world: World) -> None:
    world.trace("---- the end of all")
    for visitor in world.visitors:
        visitor.leave()
    for process in tuple(world.kernel.table.alive.values()):
        world.kernel.process_exit.end(process, "killed", "it is over")
    await asyncio.sleep(AGES)


async def _resume(world: World, process: Process) -> None:
    calls = [Resume(process.pid, thread.path) for thread in process.threads if thread.suspended]
    for call in (*calls, Resume(process.pid)):
        with suppress(UnknownProcess, UnknownThread):
            await world.system.call(call, world.client)


def _start(world: World) -> None:
    if not world.crowded:
        credit = world.chance.choice([0, 1, 4, 1000])
        _visitor(world).request(world.child(credit=credit, detach=world.maybe(0.4)))


def _visitor(world: World) -> Visitor:
    """A connected visitor, or a new one."""
    here = [visitor for visitor in world.visitors if visitor.here]
    if not here or (len(here) < 3 and world.maybe(0.2)):
        world.visitors.append(Visitor(world))
        return world.visitors[-1]
    return world.chance.choice(here)
