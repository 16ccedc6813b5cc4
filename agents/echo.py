"""Returns its argument, without a model. For tests, and to measure latency."""

from typing import Any

from llmosd import Context, agent


@agent(summary="Returns its argument; no model.")
async def echo(ctx: Context, value: Any = None) -> Any:
    return value
