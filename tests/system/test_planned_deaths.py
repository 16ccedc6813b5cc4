"""A real daemon under load that dies at every named point and at random instants: the short form of `make faults`."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

import pytest

from kernel.lib.failpoints import POINTS, VARIABLE
from llmosd import ConnectionLost, Emitted, Failed, JournalUnavailable, Result, TimedOut
from tests.faults import plan
from tests.faults.trial import Trial


@pytest.fixture
def kills(folder: Path):
    """Lets a daemon with the simulated model die as planned, and checks that nothing is lost."""

    def kills(deaths: list[plan.Death], **options: int) -> Trial:
        trial = Trial(folder, "simulated", 1, **options)
        asyncio.run(trial.run(deaths))
        return trial

    return kills


def test_the_daemon_dies_at_each_named_point_and_nothing_is_lost(kills):
    trial = kills(plan.every_point())
    assert set(trial.reached) == set(POINTS)


def test_the_daemon_dies_at_random_instants_and_on_bad_disks_and_nothing_is_lost(kills, folder):
    full = folder / "full"
    deaths = [
        plan.Death("random", live=0.2),
        plan.Death("startup", live=0.1, ready=False),
        plan.Death("write", "disk.write.log=torn@9", 5.0),
        plan.Death("full", f"disk.write.log=ENOSPC?{full}", 0.4, file=True),
        plan.Death("full", f"disk.write.log=EROFS?{full}", 0.4, file=True),
        plan.Death("errors", "disk.sync.log=EIO@6-7", 0.3, may_fail=True),
        plan.Death("slow", "disk.sync.log=sleep:0.05", 0.3),
        plan.Death("clock", "clock=jump:-86000@20-", 0.2),
        plan.Death("clock", "clock=jump:3600@20-", 0.2),
        plan.Death("drivers", live=0.3, drivers=2),
    ]
    trial = kills(deaths, most=300)
    assert trial.reached.total() == len(deaths)
    assert trial.load.jobs


# ---- a disk that fills


def test_a_full_disk_refuses_by_name_what_runs_goes_on_and_it_heals(start, folder, eventually):
    full = folder / "full"
    daemon = start(environment={VARIABLE: f"disk.write.log=ENOSPC?{full}"})
    with daemon.client() as client:
        running = client.submit("ask", {"question": "busy", "max_tokens": 200}, detach=True)
        full.touch()
        with pytest.raises(JournalUnavailable, match="make room on the disk") as refusal:
            client.submit("echo", {"value": 1}, key="refused")
        assert refusal.value.data["certain"]
        eventually(lambda: client.history()[0].state == "ending", "the running task goes on, and ends")
        with pytest.raises(JournalUnavailable):
            client.submit("echo", {"value": 1})
        with pytest.raises(TimedOut):
            running.result(0.2)  # the client gets no result before it is on disk
        full.unlink()
        assert running.result(60)
        assert client.submit("echo", {"value": 2}, key="refused").result() == 2  # the key was not used up
        assert [(row.program, row.state) for row in client.history()] == [("echo", "done"), ("ask", "done")]
    assert "faults happen on purpose" in daemon.log
    assert daemon.log.count("the journal can be written again") == 1
    assert daemon.log.count("ends of tasks wait for the disk") == 1
    assert daemon.log.count("ends of tasks are on disk") == 1


AGENTS = """
import os
from llmosd import Context, agent

@agent
async def attempts(ctx: Context, path: str):
    while not os.path.exists(path):
        await ctx.sleep(0.01)
    await ctx.emit("at the end")
    return ctx.attempt
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_an_end_that_the_disk_never_took_was_told_to_nobody_and_the_next_one_is_told_once(
    launch, folder, eventually, number
):
    """Each attempt has another result, so a client that got the first one would see two."""
    full, go = folder / "full", folder / "go"
    daemon = launch(environment={VARIABLE: f"disk.write.log=ENOSPC?{full}"})
    seen = []
    with daemon.client() as client, daemon.client() as other:
        detached = other.submit("attempts", {"path": str(go)}, detach=True)
        attached = client.submit("attempts", {"path": str(go)})
        full.touch()
        go.touch()
        eventually(lambda: other.stats().unwritten == 2, "both have ended")
        assert daemon.kill(number) == (0 if number == signal.SIGTERM else -number)
        with pytest.raises(ConnectionLost):
            seen.extend(attached.events())
    assert "at the end" in [event.value for event in seen if isinstance(event, Emitted)]
    assert not [event for event in seen if isinstance(event, Result | Failed)]
    lost = [json.loads(line)["tasks"] for line in daemon.log.splitlines() if "run again at the next start" in line]
    assert lost == ([2] if number == signal.SIGTERM else [])
    full.unlink()
    with launch().client() as client, daemon.client() as other:
        for task in (detached, attached):
            first, second = client.attach(task.id), other.attach(task.id)
            assert [first.result(60), second.result(60), client.attach(task.id).result(60)] == [2, 2, 2]
        assert [(row.state, row.attempt) for row in client.history()] == [("done", 2)] * 2


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("disk.write.log=ENOSPC", "make room on the disk of the state folder"),
        ("disk.write.log=EROFS", "make the disk of the state folder writable"),
        ("journal.open=EROFS", "make the disk of the state folder writable"),
    ],
)
def test_a_start_on_a_disk_that_takes_nothing_says_so_and_changes_nothing(start, folder, fault, said):
    daemon = start()
    with daemon.client() as client:
        assert client.run("echo", {"value": 1}) == 1
    daemon.stop()
    journal = folder / "state" / "journal.sqlite"
    before = journal.read_bytes()
    refused = start(environment={VARIABLE: fault}, ready=False)
    assert refused.process.wait(60) == 1
    assert said in refused.log
    assert "Traceback" not in refused.log
    assert journal.read_bytes() == before
    with start().client() as client:
        assert [row.state for row in client.history()] == ["done"]


# ---- the clock


@pytest.mark.parametrize("jump", [-86_000, 86_000])
def test_a_clock_that_jumps_makes_no_id_smaller_and_ends_no_task(start, folder, jump):
    jumped = folder / "jumped"
    daemon = start(environment={VARIABLE: f"clock=jump:{jump}?{jumped}"})
    with daemon.client() as client:
        before = client.submit("ask", {"question": "x", "max_tokens": 100}, deadline=30.0, detach=True)
        jumped.touch()
        after = client.submit("echo", {"value": 1}, deadline=30.0, detach=True)
        assert int(after.id, 16) > int(before.id, 16)
        assert before.result(60)
        assert after.result(60) == 1
        jumped.unlink()
        last = client.submit("echo", {"value": 2}, detach=True)
        assert int(last.id, 16) > int(after.id, 16)
        assert last.result(60) == 2
        assert [row.id for row in client.history()] == [last.id, after.id, before.id]


def test_a_fault_that_cannot_be_meant_stops_the_start(start):
    daemon = start(environment={VARIABLE: "journal.nowhere=die"}, ready=False)
    assert daemon.process.wait(60) == 2
    assert "no point 'journal.nowhere'" in daemon.log
