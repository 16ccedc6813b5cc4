"""What a program file and the kernel agree on: how a function is marked as an agent.

Set by the `agent` decorator of `llmosd`, read by the kernel's program loader.
"""

from __future__ import annotations

import msgspec

AGENT_ATTRIBUTE = "__llmos_agent__"


class AgentMark(msgspec.Struct, frozen=True):
    """The name a program is run by, one line on what it does, and the message types it accepts (None: any)."""

    name: str
    summary: str
    accepts: dict[str, type[msgspec.Struct]] | None = None
