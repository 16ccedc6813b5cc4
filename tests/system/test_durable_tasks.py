"""Tasks on a real daemon that dies: each acknowledged task ends once, at whatever moment the daemon dies."""

from __future__ import annotations

import asyncio
import json
import random
import resource
import signal
import threading
import time
from contextlib import suppress

import psutil
import pytest

from llmosd import (
    AsyncClient,
    ConnectionLost,
    DeadlineExceeded,
    JournalUnavailable,
    KeyReused,
    Killed,
    LlmosError,
    NoDaemon,
    ShuttingDown,
    TimedOut,
    TooManyAttempts,
    UnknownTask,
)

AGENTS = '''
import os
from llmosd import Context, agent

@agent
async def waiting(ctx: Context, path: str):
    """Returns its attempt once the file exists."""
    while not os.path.exists(path):
        await ctx.sleep(0.01)
    return ctx.attempt

@agent
async def family(ctx: Context, path: str):
    return [ctx.attempt, await ctx.wait(await ctx.spawn("waiting", {"path": path}))]

@agent
async def poison(ctx: Context):
    os.kill(os.getpid(), 9)

@agent
async def teller(ctx: Context, path: str):
    while not os.path.exists(path):
        await ctx.emit("still here")
        await ctx.sleep(0.01)
    return "finished"

@agent
async def work(ctx: Context, number: int, file: str):
    """Writes a line to the file in each attempt that gets to its end."""
    text = await ctx.generate(f"number {number}", max_tokens=1 + number % 9, seed=number)
    with open(file, "a") as lines:
        lines.write(f"{number}\\n")
    return [number, text]
'''


@pytest.fixture
def gate(folder):
    """The file that the agents wait for."""
    return folder / "go"


def test_a_task_goes_on_after_kill_9_and_its_result_is_kept(launch, gate):
    daemon = launch()
    with daemon.client() as client:
        detached = client.submit("waiting", {"path": str(gate)}, detach=True)
        attached = client.submit("family", {"path": str(gate)})
        assert client.run("echo", {"value": 5}) == 5
        daemon.kill()
        with pytest.raises(ConnectionLost):
            attached.result()
    daemon = launch()
    with daemon.client() as client:
        tasks = [client.attach(detached.id), client.attach(attached.id)]
        assert {task.pid for task in tasks} <= {row.pid for row in client.ps()}
        gate.touch()
        assert [task.result(60) for task in tasks] == [2, [2, 2]]
    daemon.kill()
    with launch().client() as client:
        assert client.attach(detached.id).result(60) == 2
        assert client.attach(attached.id).result(60) == [2, 2]
        assert [(row.program, row.state, row.attempt) for row in client.history()] == [
            ("echo", "done", 1),
            ("family", "done", 2),
            ("waiting", "done", 2),
        ]
        assert client.ps() == []


def test_the_same_key_is_the_same_task_over_a_restart_and_after_its_end(launch, gate):
    daemon = launch()
    arguments = {"path": str(gate)}
    with daemon.client() as client, daemon.client() as other:
        first = client.submit("waiting", arguments, key="night run", detach=True)
        again = other.submit("waiting", arguments, key="night run", detach=True)
        assert (again.id, again.pid) == (first.id, first.pid)
        with pytest.raises(KeyReused, match="night run"):
            client.submit("waiting", {"path": "/another"}, key="night run")
        daemon.kill()
    with launch().client() as client:
        again = client.submit("waiting", arguments, key="night run", detach=True)
        assert again.id == first.id
        gate.touch()
        assert again.result(60) == 2
        last = client.submit("waiting", arguments, key="night run")
        assert (last.id, last.pid, last.result(60)) == (first.id, 0, 2)
        assert [row.id for row in client.history()] == [first.id]


def test_a_task_that_kills_the_daemon_is_given_up(launch):
    settings = "[journal]\nattempts = 2\n"
    daemon = launch(settings)
    with daemon.client() as client, suppress(ConnectionLost):
        client.submit("poison", detach=True, key="poison")
    assert daemon.process.wait(60) == -signal.SIGKILL
    assert launch(settings, ready=False).process.wait(60) == -signal.SIGKILL
    with launch(settings).client() as client:
        with pytest.raises(TooManyAttempts, match="died 2 times"):
            client.submit("poison", key="poison", detach=True).result(60)
        assert client.run("echo", {"value": 1}) == 1


def test_a_deadline_counts_from_submission_and_a_program_that_is_gone_is_named(launch, agents, gate, eventually):
    daemon = launch()
    with daemon.client() as client:
        late = client.submit("waiting", {"path": str(gate)}, deadline=0.5, detach=True)
        gone = client.submit("teller", {"path": str(gate)}, detach=True)
        good = client.submit("waiting", {"path": str(gate)}, deadline=3600.0, detach=True)
    daemon.kill()
    (agents / "some.py").write_text(AGENTS.replace("async def teller", "async def renamed"))
    time.sleep(0.5)  # the deadline passes on the clock of the machine
    gate.touch()
    with launch().client() as client:
        with pytest.raises(DeadlineExceeded, match=r"the deadline of 0\.5 s"):
            client.attach(late.id).result(60)
        eventually(lambda: {row.id: row.state for row in client.history()}[gone.id] == "waiting", "it waits")
        assert "teller" in {row.id: row.waits_for for row in client.history()}[gone.id]
        assert client.attach(good.id).result(60) == 2


def test_an_orderly_stop_ends_what_is_attached_and_leaves_what_is_detached_to_the_next_start(launch, gate):
    daemon = launch(environment={"LLMOSD_DRAIN_SECONDS": "0.1"})
    with daemon.client() as client:
        attached = client.submit("waiting", {"path": str(gate)})
        detached = client.submit("waiting", {"path": str(gate)}, detach=True)
        daemon.process.send_signal(signal.SIGTERM)
        with pytest.raises(Killed, match="shuts down"):
            attached.result(60)
        with pytest.raises((ConnectionLost, ShuttingDown)):
            detached.result(60)
    assert daemon.process.wait(60) == 0
    with launch().client() as client:
        gate.touch()
        assert client.attach(detached.id).result(60) == 2
        with pytest.raises(Killed, match="shuts down"):
            client.attach(attached.id).result(60)


def test_who_attaches_sees_events_from_then_on_and_several_may(launch, gate):
    daemon = launch()
    with daemon.client() as client, daemon.client() as other, daemon.client() as third:
        task = client.submit("teller", {"path": str(gate)})
        streams = [one.attach(task.id).events(10) for one in (other, third)]
        assert [next(events).value for events in streams] == ["still here"] * 2
        third.close()
        gate.touch()
        assert list(streams[0])[-1].value == "finished"
        assert task.result(60) == "finished"
        with pytest.raises(UnknownTask):
            client.attach("12345")
        with pytest.raises(UnknownTask, match="no id of a task"):
            client.attach("not an id")


def test_a_disk_that_takes_nothing_refuses_new_tasks_loses_nothing_and_heals(launch, gate, eventually):
    daemon = launch()
    process = psutil.Process(daemon.pid)
    with daemon.client() as client:
        running = client.submit("waiting", {"path": str(gate)}, detach=True)
        size = max(path.stat().st_size for path in (daemon.folder / "state").glob("journal.sqlite*"))
        _, hard = process.rlimit(psutil.RLIMIT_FSIZE)
        process.rlimit(psutil.RLIMIT_FSIZE, (4096, hard))
        assert size > 4096
        with pytest.raises(JournalUnavailable, match="make room"):
            client.submit("echo", {"value": "x" * 100_000})
        gate.touch()
        eventually(lambda: client.stats().unwritten == 1, "the task goes on, and ends")
        with pytest.raises(TimedOut):
            running.result(0.2)  # the client gets no result before it is on disk
        with pytest.raises(JournalUnavailable):
            client.submit("echo", {"value": 1})
        process.rlimit(psutil.RLIMIT_FSIZE, (resource.RLIM_INFINITY, hard))
        assert running.result(60) == 1
        assert client.run("echo", {"value": 2}) == 2
        daemon.kill()
    assert "new tasks are refused" in daemon.log
    assert "can be written again" in daemon.log
    with launch().client() as client:
        assert client.attach(running.id).result(60) == 1
        assert [(row.program, row.state, row.attempt) for row in client.history()] == [
            ("echo", "done", 1),
            ("waiting", "done", 1),
        ]


def test_two_daemons_on_one_state_folder(launch, start, folder):
    daemon = launch()
    second = start("--socket", str(folder / "other.sock"), ready=False)
    assert second.process.wait(60) == 1
    assert f"pid {daemon.pid} uses the state folder" in second.log


def test_a_damaged_journal_is_said_so_and_kept_aside(launch, folder):
    daemon = launch()
    with daemon.client() as client:
        assert client.run("echo", {"value": 1}) == 1
    daemon.kill()
    (folder / "state" / "journal.sqlite-wal").unlink()  # else the daemon would read the pages that are whole in the log
    (folder / "state" / "journal.sqlite").write_bytes(b"this is no journal " * 1000)
    daemon = launch()
    with daemon.client() as client:
        assert client.run("echo", {"value": 1}) == 1
        assert len(client.history()) == 1
    assert "set aside" in daemon.log
    set_aside = [path for path in (folder / "state").glob("journal.sqlite.damaged-*") if path.name[-1].isdigit()]
    assert [path.read_bytes() for path in set_aside] == [b"this is no journal " * 1000]


def test_damage_to_what_is_whole_in_the_log_loses_nothing(launch, folder):
    daemon = launch()
    with daemon.client() as client:
        assert client.run("echo", {"value": 1}) == 1
        task = client.history()[0].id
    daemon.kill()
    (folder / "state" / "journal.sqlite").write_bytes(b"this is no journal " * 1000)
    daemon = launch()
    with daemon.client() as client:
        assert client.attach(task).result(60) == 1
    assert "set aside" not in daemon.log


def test_a_journal_from_the_future_stops_the_start_with_a_reason(launch, folder):
    import apsw

    daemon = launch()
    with daemon.client() as client:
        assert client.run("echo", {"value": 1}) == 1
    daemon.kill()
    db = apsw.Connection(str(folder / "state" / "journal.sqlite"))
    db.execute("PRAGMA user_version = 99")
    db.close()
    daemon = launch(ready=False)
    assert daemon.process.wait(60) == 1
    assert "version 99" in daemon.log


def test_attach_and_history_from_the_terminal(launch, gate):
    daemon = launch()
    submission = ("run", "-d", "waiting", str(gate), "--key", "k", "--json")
    task = json.loads(daemon.llmos(*submission).stdout)["id"]
    assert json.loads(daemon.llmos(*submission).stdout)["id"] == task
    assert daemon.llmos("attach", task, "--timeout", "0.1").returncode == 124
    daemon.kill()
    daemon = launch()
    (row,) = json.loads(daemon.llmos("history", "--json").stdout)
    assert (row["id"], row["program"], row["attempt"]) == (task, "waiting", 2)
    gate.touch()
    assert daemon.llmos("attach", task).stdout == "2\n"
    (row,) = json.loads(daemon.llmos("history", "--json").stdout)
    ended = {"pid": row["last_pid"], "id": task, "result": 2}
    assert json.loads(daemon.llmos("attach", task, "--json").stdout) == ended
    page = daemon.llmos("history", "--limit", "1")
    assert task in page.stdout
    assert f"--before {task}" in page.stderr
    assert daemon.llmos("history", "--before", task).stdout.count("\n") == 1
    assert daemon.llmos("attach", "abc").returncode == 2


def test_a_daemon_starts_on_a_backup_that_was_made_while_it_was_used(launch, start, agents, gate, folder):
    daemon = launch()
    with daemon.client() as client:
        done = client.submit("echo", {"value": 5}, detach=True)
        assert done.result(60) == 5
        waiting = client.submit("waiting", {"path": str(gate)}, detach=True)
    (folder / "other").mkdir()
    copy = folder / "other" / "journal.sqlite"
    assert daemon.llmos("backup", str(copy)).returncode == 0
    refused = daemon.llmos("backup", str(copy))
    assert (refused.returncode, "not overwritten" in refused.stderr) == (1, True)
    place = ("--state", str(folder / "other"), "--socket", str(folder / "other.sock"))
    other = start("--agents", str(agents), *place, ready=False)
    other.socket = folder / "other.sock"
    with other.wait_until_ready().client() as client:
        gate.touch()
        assert client.attach(done.id).result(60) == 5
        assert client.attach(waiting.id).result(60) == 2


# ---- under load


class Load:
    """Clients that submit without end, through every death of the daemon, and record every answer."""

    def __init__(self, socket, file):
        self.socket, self.file = socket, file
        self.acknowledged: dict[int, str] = {}  # by number of work: the id of its task
        self.results: dict[int, list] = {}
        self.next = 0
        self.over = False

    async def run(self, clients):
        await asyncio.gather(*(self._client() for _ in range(clients)))

    async def _client(self):
        while not self.over:
            with suppress(LlmosError):
                async with AsyncClient(self.socket) as llmos:
                    await asyncio.gather(*(self._submit(llmos) for _ in range(4)))
            await asyncio.sleep(0.01)

    async def _submit(self, llmos):
        while not self.over:
            self.next = number = self.next + 1
            arguments = {"number": number, "file": str(self.file)}
            task = await llmos.submit("work", arguments, key=str(number), detach=number % 2 == 0)
            self.acknowledged[number] = task.id
            self.results[number] = await task.result()


@pytest.mark.soak
def test_every_acknowledged_task_ends_in_one_result_though_the_daemon_is_killed(launch, folder, trial, eventually):
    settings = "[journal]\nattempts = 1000000\n"
    chance = random.Random(20261124)
    daemon = launch(settings)
    load = Load(daemon.socket, folder / "lines")
    driven = threading.Thread(target=lambda: asyncio.run(load.run(8)))
    driven.start()
    try:
        for _ in range(trial(short=4, long=1000)):
            time.sleep(chance.random() * 0.5)  # any instant will do
            daemon.kill()
            daemon = launch(settings)
    finally:
        load.over = True
        with suppress(NoDaemon), daemon.client() as client:
            eventually(lambda: all(row.ended for row in client.history(100_000)), "all tasks have ended", 60)
        driven.join()
    with daemon.client() as client:
        rows = {row.id: row for row in client.history(100_000)}
        assert set(load.acknowledged.values()) <= rows.keys()
        texts = {}
        for number, task in load.acknowledged.items():
            row = rows[task]
            # The client of an attached task may have left during the last run of the daemon.
            if row.state == "killed":
                assert number % 2
                continue
            assert row.state == "done"
            texts[number] = client.attach(task).result(60)
            assert texts[number][0] == number
            assert load.results.get(number, texts[number]) == texts[number]
    done = [int(line) for line in (folder / "lines").read_text().split()]
    assert set(texts) <= set(done)
    assert len(texts) > 50
    assert not list((folder / "state").glob("*damaged*"))
