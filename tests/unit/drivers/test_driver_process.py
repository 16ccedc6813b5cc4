"""The kernel's side of a real driver process: it starts, exchanges messages, and its end is reported with a reason."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ipc.frames import frame
from kernel.drivers import process, protocol
from kernel.drivers.process import launch

pytestmark = pytest.mark.real_time


class Heard:
    """The messages of a driver, and the reason for its end."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.end: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def until(self, kind: type) -> Any:
        while not (found := [message for message in self.messages if isinstance(message, kind)]):
            assert not self.end.done()
            await asyncio.sleep(0.005)
        return found[0]


async def started(**options: Any) -> tuple[Any, Heard]:
    heard = Heard()
    driver = await launch("simulated", "sim", heard.messages.append, heard.end.set_result)
    driver.send(protocol.Load("", "", 10, options))
    await heard.until(protocol.Loaded)
    return driver, heard


async def test_a_driver_that_breaks_the_protocol_is_cut_off_and_named() -> None:
    driver, heard = await started()
    driver.data_received(frame(b"\xc1"))  # a byte that msgpack never uses
    assert (await asyncio.wait_for(heard.end, 60)).startswith("broke the protocol: ")


async def test_a_driver_that_hangs_ends_when_it_is_killed_or_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "EXIT_GRACE", 0.3)
    for deadly in (True, False):
        driver, heard = await started(hang_after=0)
        if deadly:
            driver.kill()
        else:
            await driver.stop()
        assert await asyncio.wait_for(heard.end, 60) == "signal 9"
        driver.kill()  # twice does no harm
