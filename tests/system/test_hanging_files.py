"""A real daemon with files that never end, and with agents that block all threads of `asyncio.to_thread`."""

from __future__ import annotations

import signal
from collections.abc import Callable

from ipc.syscalls import GetStats
from tests.support.daemon import RunningDaemon

HANGS = "import time\nfrom llmosd import agent\n\ntime.sleep(3600)\n\n@agent\nasync def hangs{}(ctx): ...\n"
AGENTS = """
import asyncio
import time
from llmosd import Context, agent

@agent
async def sound(ctx: Context) -> int:
    return 1

@agent
async def blocks_threads(ctx: Context) -> None:
    threads = [asyncio.create_task(asyncio.to_thread(time.sleep, 3600)) for _ in range(40)]
    await asyncio.sleep(0.1)
    await ctx.emit("blocked")
    await asyncio.wait(threads)

@agent
async def uses_a_thread(ctx: Context) -> int:
    return await asyncio.to_thread(int, "3")
"""


def test_files_that_never_end_and_blocked_threads_stop_neither_loading_nor_listing_nor_other_agents(
    launch: Callable[..., RunningDaemon],
) -> None:
    daemon = launch(environment={"LLMOSD_DRAIN_SECONDS": "0.1"})
    folder = daemon.folder / "agents"
    for number in range(3):
        (folder / f"hangs{number}.py").write_text(HANGS.format(number))
    path = folder / "some.py"
    with daemon.client() as llmos:
        assert llmos.run("sound") == 1
        blocks = llmos.submit("blocks_threads")
        assert next(blocks.events()).value == "blocked"
        assert llmos.run("uses_a_thread") == 3
        path.write_text(AGENTS.replace("return 1", "return 2"))
        assert llmos.run("sound") == 2
        assert llmos.run(f"{path}:sound") == 2
        rows = {row.name: row.error for row in llmos.programs()}
        assert rows["sound"] == ""
        for number in range(3):
            assert f"hangs{number}.py has been running for" in rows[f"hangs{number}"]
            assert f"at {folder}/hangs{number}.py:4" in rows[f"hangs{number}"]
        assert llmos.request(GetStats()).version
    assert daemon.kill(signal.SIGTERM) == 0
