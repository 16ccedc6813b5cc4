"""What a program file and the kernel agree on: how a function is marked as an agent or as a tool.

Set by the decorators of `llmosd`, read by the kernel's program loader.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

AGENT_ATTRIBUTE = "__llmos_agent__"
TOOL_ATTRIBUTE = "__llmos_tool__"


class AgentMark(msgspec.Struct, frozen=True):
    """The name a program is run by, one line on what it does, and the message types it accepts (None: any).

    `durable`: whether its calls are kept, so that a restart of the daemon takes it back to where it was.
    """

    name: str
    summary: str
    accepts: dict[str, type[msgspec.Struct]] | None = None
    durable: bool = False


class ToolMark(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a tool is called: its name, one line on what it does, and how calls of it are made.

    `concurrency`: calls that run at once; `timeout`: seconds that a call waits, None for ever; `retries`: further
    attempts after a failure.
    """

    name: str
    summary: str
    concurrency: Annotated[int, Meta(ge=1, le=256)] = 8
    timeout: Annotated[float, Meta(ge=0)] | None = None
    retries: Annotated[int, Meta(ge=0, le=100)] = 0
