"""A durable agent whose model has other files in the next run of the daemon."""

from __future__ import annotations

import pytest

from kernel.drivers import protocol
from kernel.models.spec import ModelSpec
from llmosd.context import Context
from tests.support.durable_world import World
from tests.support.simulated import FAST, text_of


@pytest.mark.real_time
@pytest.mark.parametrize(("files", "continues"), [("first", True), ("second", False)])
async def test_a_reply_in_progress_continues_only_in_the_model_that_began_it(
    world: World, files: str, continues: bool
) -> None:
    async def writer(ctx: Context) -> str:
        return await ctx.generate("one two three", max_tokens=60, seed=7)

    world.models = {"sim": ModelSpec(driver="simulated", slots=8, options=FAST | {"step_seconds": 0.005})}
    program = world.agent(writer)
    async with world.life(orderly=True) as life:
        life.system.launcher.identity = "first"
        task, folder = await life.submit(program), life.folder
        runtime = life.system.runtime()
        await life.until(lambda: [one for one in runtime.active.sequences.values() if len(one.ids) > 5])
    async with world.life(folder) as life:
        life.system.launcher.identity = files
        assert await life.result(task) == text_of(7, 60)
        (admit,) = life.system.driver.sent_of(protocol.Admit)
        assert (bool(admit.generated), admit.prompt_ids is not None) == (continues, continues)
        assert life.system.runtime().active.pager.restores == int(continues)
