"""Marks on functions of a program file, by which the kernel recognises the agents and tools in the file.

The decorators of `llmosd` set them, and the kernel's program loader reads them. This module never calls a function.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

AGENT_ATTRIBUTE = "__llmos_agent__"
TOOL_ATTRIBUTE = "__llmos_tool__"


class AgentMark(msgspec.Struct, frozen=True):
    """Marks a coroutine function as a program.

    `name`: the name of the program. `summary`: a description in one line. `accepts`: the message types that the agent
    declares, by name; None if it accepts any message. `durable`: the calls of the agent are recorded, so that it
    continues after a restart of the daemon.
    """

    name: str
    summary: str
    accepts: dict[str, type[msgspec.Struct]] | None = None
    durable: bool = False


class ToolMark(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Marks a function as a tool.

    `name`: the name by which agents call the tool. `summary`: a description in one line. `concurrency`: the most calls
    that run at the same time. `timeout`: seconds that a call waits for its result; None: without limit. `retries`:
    further attempts after a failure.
    """

    name: str
    summary: str
    concurrency: Annotated[int, Meta(ge=1, le=256)] = 8
    timeout: Annotated[float, Meta(ge=0)] | None = None
    retries: Annotated[int, Meta(ge=0, le=100)] = 0
