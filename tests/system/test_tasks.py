"""Tasks on a real daemon with the simulated model: streams, kills, disconnects, many at once, both clients."""

from __future__ import annotations

import asyncio
import os
import pwd
import signal
import time

import psutil
import pytest

from ipc.errors import BadArguments, ContextOverflow, InvalidCall, Killed, UnknownModel, UnknownProgram
from llmosd import (
    AgentFailed,
    AsyncClient,
    DeadlineExceeded,
    LlmosError,
    MailboxFull,
    Result,
    TimedOut,
    Token,
    UnknownProcess,
)

AGENTS = '''
import asyncio
from llmosd import Context, agent

@agent
async def stuck(ctx: Context):
    """Never reads its mailbox."""
    await ctx.sleep(3600)

@agent
async def answering(ctx: Context):
    """Replies to one call."""
    message = await ctx.receive()
    await ctx.reply(message, {"got": message.body})

@agent
async def failing(ctx: Context):
    raise ValueError("on purpose")

@agent
async def teller(ctx: Context, count: int):
    """Emits numbers, writes a line for each."""
    for number in range(count):
        ctx.log("telling", number=number)
        await ctx.emit(number)
    return count

@agent
async def parent(ctx: Context, children: int):
    pids = [await ctx.spawn("echo", {"value": number}) for number in range(children)]
    return sum([await ctx.wait(pid) for pid in pids])

@agent
async def crowd(ctx: Context, children: int):
    pids = [await ctx.spawn("ask", {"question": "q", "max_tokens": 4000}) for _ in range(children)]
    await ctx.sleep(3600)

@agent
async def grouped(ctx: Context):
    async with asyncio.TaskGroup() as group:
        texts = [group.create_task(ctx.chat([{"role": "user", "content": "q"}], max_tokens=5)) for _ in range(4)]
    return [text.result() for text in texts]

@agent
async def broken_result(ctx: Context):
    return object()
'''


@pytest.fixture
def agents(agents):
    (agents / "broken.py").write_text("import nothing_of_that_name\n")
    return agents


@pytest.fixture
def daemon(launch):
    return launch()


@pytest.fixture
def client(daemon):
    with daemon.client() as client:
        yield client


def idle(client):
    """Whether nothing runs and no slot is taken."""
    return not client.ps() and all(not row.used and not row.queued and not row.sequences for row in client.slots())


def test_tokens_come_as_they_are_made_and_add_up_to_the_result(client):
    events = list(client.submit("ask", {"question": "hi", "max_tokens": 20}).events())
    tokens = [event for event in events if isinstance(event, Token)]
    assert len(tokens) > 5
    assert isinstance(events[-1], Result)
    assert "".join(token.text for token in tokens) == events[-1].value


def test_the_same_seed_draws_the_same_text(client):
    first, second, other = (client.run("ask", {"question": "q", "seed": seed, "max_tokens": 9}) for seed in (5, 5, 6))
    assert first == second != other


def test_emitted_values_and_logs_reach_the_submitter_in_order(client):
    events = list(client.submit("teller", {"count": 1000}).events())
    assert [event.value for event in events if type(event).__name__ == "Emitted"] == list(range(1000))
    assert events[-1].value == 1000


def test_children_and_task_groups_work(client):
    assert client.run("parent", {"children": 50}) == sum(range(50))
    assert len(client.run("grouped")) == 4


def test_kill_during_a_generation_frees_its_slot_within_a_step(client, eventually):
    task = client.submit("ask", {"question": "long", "max_tokens": 8000})
    next(event for event in task.events() if isinstance(event, Token))
    steps = client.slots()[0].steps
    client.kill(task.pid)
    eventually(lambda: client.slots()[0].used == 0, "slot free")
    assert client.slots()[0].steps - steps <= 2  # the step that ran, and one that began before the kill arrived
    with pytest.raises(Killed):
        task.result()
    assert idle(client)


def test_a_client_that_disconnects_leaves_nothing_behind(daemon, client, eventually):
    with daemon.client() as other:
        task = other.submit("crowd", {"children": 5})
        eventually(lambda: client.slots() and client.slots()[0].used == 5, "five generations run")
        assert task.pid in {row.pid for row in client.ps()}
    eventually(lambda: idle(client), "nothing left")
    assert client.stats().connections == 1


def test_a_detached_task_outlives_its_client(daemon, client):
    with daemon.client() as other:
        pid = other.submit("ask", {"question": "q", "max_tokens": 100}, detach=True).pid
    assert client.wait(pid).count("s") == 100


@pytest.mark.soak
def test_killing_the_driver_loses_no_generation(daemon, client, trial, eventually):
    arguments = [{"question": "q", "max_tokens": 400, "seed": seed} for seed in range(8)]
    undisturbed = [task.result() for task in [client.submit("ask", one) for one in arguments]]
    for kill in range(1, 1 + trial(short=2, long=100)):
        tasks = [client.submit("ask", one) for one in arguments]
        eventually(lambda: sum(s.generated_tokens > 10 for s in client.slots()[0].sequences) == 8, "all have begun")
        os.kill(client.slots()[0].driver_pid, signal.SIGKILL)
        assert [task.result() for task in tasks] == undisturbed
        assert client.slots()[0].restarts == kill
    assert "driver died" in daemon.log
    assert any("driver died" in line.event for line in client.logs(tasks[0].pid))


def test_a_suspended_task_makes_no_progress_and_goes_on_as_if_nothing_happened(client, eventually):
    arguments = {"question": "q", "max_tokens": 300, "seed": 3}
    undisturbed = client.run("ask", arguments)
    task = client.submit("ask", arguments)
    next(event for event in task.events() if isinstance(event, Token))
    client.suspend(task.pid)
    eventually(lambda: client.slots()[0].used == 0, "off its slot")
    before = client.slots()[0].sequences[0].generated_tokens
    assert client.run("ask", {"question": "another", "max_tokens": 20})
    assert client.slots()[0].sequences[0].generated_tokens == before
    assert [row.state for row in client.ps()] == ["suspended"]
    client.resume(task.pid)
    assert task.result() == undisturbed


def test_a_deadline_ends_the_task_and_a_timeout_does_not(client):
    with pytest.raises(DeadlineExceeded):
        client.run("stuck", deadline=0.1)
    task = client.submit("stuck")
    with pytest.raises(TimedOut):
        task.result(timeout=0.1)
    assert [row.pid for row in client.ps()] == [task.pid]
    task.cancel()
    assert idle(client)


def test_calls_between_a_client_and_an_agent(client):
    pid = client.submit("answering").pid
    assert client.call(pid, [1, 2]) == {"got": [1, 2]}


@pytest.mark.parametrize(
    ("program", "arguments", "error", "part"),
    [
        ("nothing", {}, UnknownProgram, "known: answering"),
        ("./no/such/file.py", {}, UnknownProgram, "no file"),
        ("broken", {}, AgentFailed, "nothing_of_that_name"),
        ("ask", {}, BadArguments, "question"),
        ("ask", {"question": 5}, BadArguments, "question"),
        ("ask", {"question": "q", "max_token": 5}, BadArguments, "did you mean max_tokens"),
        ("ask", {"question": "q", "max_tokens": 0}, InvalidCall, "max_tokens"),
        ("ask", {"question": "q", "temperature": -1.0}, InvalidCall, "temperature"),
        ("ask", {"question": "q", "model": "nope"}, UnknownModel, "configured: smollm2, simulated"),
        ("ask", {"question": "q", "model": "./nope"}, LlmosError, "no model at"),
        ("ask", {"question": "word " * 9000, "max_tokens": 10}, ContextOverflow, "9000 tokens and a reply of up to 10"),
        ("failing", {}, AgentFailed, "on purpose"),
        ("broken_result", {}, LlmosError, "broken_result"),
    ],
)
def test_bad_input_is_a_named_error_and_the_daemon_goes_on(client, program, arguments, error, part):
    with pytest.raises(error, match=part):
        client.run(program, arguments)
    assert client.run("echo", {"value": 1}) == 1
    assert idle(client)


def test_a_full_mailbox_is_a_named_error_and_drops_nothing(client):
    pid = client.submit("stuck").pid
    for number in range(1000):
        client.send(pid, number)
    with pytest.raises(MailboxFull, match="1000 messages"):
        client.send(pid, "one too many", wait=False)
    assert client.ps()[0].mailbox == 1000
    with pytest.raises(UnknownProcess):
        client.send(10**9, "nobody")


@pytest.mark.soak
def test_ten_thousand_echoes_from_a_hundred_connections(daemon, client, trial, eventually):
    turns = trial(short=100, long=2000)

    async def one(number):
        async with AsyncClient(daemon.socket) as llmos:
            return [await llmos.run("echo", {"value": (number, turn)}) for turn in range(turns)]

    async def all_of_them():
        return await asyncio.gather(*(one(number) for number in range(100)))

    asyncio.run(all_of_them())  # allocates what such a load needs, before the measurement
    before = daemon.memory()
    results = asyncio.run(all_of_them())
    assert results == [[[number, turn] for turn in range(turns)] for number in range(100)]
    eventually(lambda: client.stats().connections == 1, "connections closed")
    stats = client.stats()
    assert (stats.processes, stats.threads) == (0, 0)
    assert stats.exited["done"] == 200 * turns
    assert daemon.memory() - before < 5_000_000


def test_sixty_four_asks_at_once_run_together(daemon):
    async def ask():
        async with AsyncClient(daemon.socket) as llmos:
            tasks = [await llmos.submit("ask", {"question": str(n), "max_tokens": 30}) for n in range(64)]
            texts = await asyncio.gather(*(task.result() for task in tasks))
            return texts, (await llmos.slots())[0]

    texts, slots = asyncio.run(ask())
    assert all(text.count("s") == 30 for text in texts)
    assert slots.steps < 64 * 30 / 4  # far fewer steps than one for each token


def test_more_calls_than_slots_queue_in_order_and_all_finish(start, folder, eventually):
    config = folder / "few.toml"
    config.write_text("[models.simulated]\nslots = 2\n")
    with start("--config", str(config)).client() as client:
        tasks = [client.submit("ask", {"question": "q", "max_tokens": 60}) for _ in range(7)]
        eventually(lambda: client.slots()[0].used == 2, "both slots taken")
        places = [sequence.position for sequence in client.slots()[0].sequences]
        assert places == sorted(places)
        assert all(task.result().count("s") == 60 for task in tasks)
        assert idle(client)


def test_cancelling_an_async_run_kills_the_task(daemon, client, eventually):
    async def cancelled():
        async with AsyncClient(daemon.socket) as llmos:
            run = asyncio.create_task(llmos.run("ask", {"question": "q", "max_tokens": 8000}))
            while not (await llmos.slots() and (await llmos.slots())[0].used):
                await asyncio.sleep(0.01)
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run
            while await llmos.ps():
                await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(cancelled(), 60))
    assert idle(client)


def test_a_slow_reader_pauses_its_task_and_loses_nothing(client, eventually):
    task = client.submit("teller", {"count": 5000})
    time.sleep(0.3)
    assert client.ps()[0].waits_for == "reader of the task"
    values = [event.value for event in task.events() if type(event).__name__ == "Emitted"]
    assert values == list(range(5000))


def test_no_descriptor_is_leaked(daemon, client, eventually):
    with daemon.client() as other:
        other.run("ask", {"question": "q"})
    before = psutil.Process(daemon.pid).num_fds()
    for _ in range(50):
        with daemon.client() as other:
            other.run("echo", {"value": 1})
    eventually(lambda: psutil.Process(daemon.pid).num_fds() <= before, "descriptors closed")


def test_a_key_is_one_task_for_all_clients_of_a_user_and_the_user_is_its_owner(daemon):
    user = pwd.getpwuid(os.getuid()).pw_name

    async def submit() -> str:
        async with AsyncClient(daemon.socket) as client:
            return (await client.submit("echo", {"value": "once"}, detach=True, key="k")).id

    first, _ = daemon.llmos("run", "-d", "echo", "--key", "k", "-a", "value=once").stdout.split()
    with daemon.client() as client:
        second = client.submit("echo", {"value": "once"}, detach=True, key="k").id
        other = client.submit("echo", {"value": "once"}, detach=True, key="k", owner="bob").id
        assert asyncio.run(submit()) == second == first != other
        assert {row.id: row.owner for row in client.history()} == {first: user, other: "bob"}
        labels = {row.program for row in client.ps(clients=True)}
        assert (labels, {row.owner for row in client.ps(clients=True)}) == ({"client"}, {user})


def test_pids_continue_in_the_next_run_of_the_daemon(start):
    first = start()
    with first.client() as client:
        pid = client.submit("echo", {"value": 1}, detach=True).pid
    first.stop()
    second = start()
    with second.client() as client:
        assert client.pid > pid
        assert client.submit("echo", {"value": 1}, detach=True).pid == client.pid + 1
        with pytest.raises(UnknownProcess, match=f"process {pid} has ended"):
            client.kill(pid)
