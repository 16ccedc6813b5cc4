"""A model whose files changed since a reply began: no reply is made of the tokens of two models."""

from __future__ import annotations

import asyncio

import pytest

from ipc.errors import ModelChanged
from ipc.messages import Log, Token
from ipc.syscalls import Resume, Suspend
from kernel.drivers import protocol
from tests.support.agents import teller
from tests.support.simulated import assert_nothing_left, text_of
from tests.support.system import System

AGAIN = "the model's files have changed; the reply begins again"


@pytest.fixture(autouse=True)
def known(system: System) -> None:
    """The model has files, which the driver has read."""
    system.launcher.identity = "first"


async def quiet(system: System, after: float = 5.5) -> asyncio.Task[str]:
    """A reply of 20 tokens, in progress, of which no client sees anything."""
    process = system.spawn(teller, tokens=20, seed=3)
    result = asyncio.ensure_future(system.result(process))
    await asyncio.sleep(after)
    assert process.generated_tokens
    return result


async def test_a_reply_begins_again_with_its_prompt_when_the_files_changed(system: System) -> None:
    result = await quiet(system)
    system.launcher.identity = "second"
    system.driver.die()
    assert await result == text_of(3, 20)
    (admit,) = system.driver.sent_of(protocol.Admit)
    assert (admit.prompt, admit.prompt_ids, admit.generated, admit.released) == ("one two three", None, [], 0)
    assert_nothing_left(system)


async def test_a_reply_continues_when_the_files_are_the_same(system: System) -> None:
    result = await quiet(system)
    system.driver.die()
    assert await result == text_of(3, 20)
    (admit,) = system.driver.sent_of(protocol.Admit)
    assert admit.generated


async def test_a_reply_of_a_driver_that_names_no_files_continues(system: System) -> None:
    system.launcher.identity = ""
    result = await quiet(system)
    system.launcher.identity = "second"
    system.driver.die()
    assert await result == text_of(3, 20)
    (admit,) = system.driver.sent_of(protocol.Admit)
    assert admit.generated


async def test_a_reply_that_a_client_has_begun_to_read_ends_with_an_error(system: System) -> None:
    recorder = system.recorder()
    process = system.spawn(teller, tokens=20, seed=3, stream=recorder.stream)
    await asyncio.sleep(5.5)
    system.launcher.identity = "second"
    system.driver.die()
    with pytest.raises(ModelChanged, match="files of model sim changed during this reply, of which a client has seen"):
        await system.result(process)
    seen = "".join(event.text for event in recorder.of(Token))
    assert seen
    assert text_of(3, 20).startswith(seen)
    assert_nothing_left(system)


async def test_a_reply_that_a_client_will_read_begins_again_before_its_first_token(system: System) -> None:
    recorder = system.recorder()
    processes = [
        system.spawn(teller if not n else "teller", tokens=20, seed=n, stream=recorder.stream if n == 2 else None)
        for n in range(3)
    ]
    await asyncio.sleep(5.5)  # the third reply has no slot yet
    system.launcher.identity = "second"
    system.driver.die()
    assert [await system.result(process) for process in processes] == [text_of(n, 20) for n in range(3)]
    assert "".join(event.text for event in recorder.of(Token)) == text_of(2, 20)


async def test_the_swap_file_of_an_earlier_model_is_removed(system: System) -> None:
    process = system.spawn(teller, tokens=20, seed=3)
    await asyncio.sleep(5.5)
    await system.call(Suspend(process.pid))
    await asyncio.sleep(2)
    runtime = system.runtime()
    runtime.unload("the test replaces its files")
    await system.until(lambda: runtime.state.name == "unloaded")
    (generation,) = runtime.active.sequences.values()
    assert runtime.active.pager.swapped == {generation.id}
    system.launcher.identity = "second"
    await system.call(Resume(process.pid))
    assert await system.result(process) == text_of(3, 20)
    assert runtime.active.pager.swapped == set()
    assert runtime.active.pager.restores == 0
    (admit,) = system.driver.sent_of(protocol.Admit)
    assert (admit.swapped, admit.generated) == ("", [])


async def test_the_log_of_the_process_says_why_a_reply_begins_again(system: System) -> None:
    recorder = system.recorder()
    process = system.spawn(teller, tokens=20, seed=3)
    process.stream = None
    await asyncio.sleep(5.5)
    process.stream = recorder.stream
    made = process.generated_tokens
    (generation,) = system.runtime().active.sequences.values()
    generation.emit = False
    system.launcher.identity = "second"
    system.driver.die()
    assert await system.result(process) == text_of(3, 20)
    logged = [event for event in recorder.of(Log) if event.event == AGAIN]
    assert [event.fields for event in logged] == [{"model": "sim", "tokens": made}]
