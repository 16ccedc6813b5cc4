"""The context: what an agent sees of the kernel. Each method is one system call.

Made by the daemon for every process and handed to its coroutine. It holds no state of its own and decides nothing:
the gate does. One file a subject.
"""

from __future__ import annotations

from llmosd.context.durable import DurableCalls
from llmosd.context.memory import MemoryCalls
from llmosd.context.messages import MessageCalls
from llmosd.context.models import ChatOptions, ModelCalls
from llmosd.context.processes import ProcessCalls
from llmosd.context.supervision import SupervisionCalls
from llmosd.context.sync import SyncCalls
from llmosd.context.tools import ToolCalls

__all__ = ["ChatOptions", "Context"]


class Context(
    ModelCalls,
    MessageCalls,
    SupervisionCalls,
    SyncCalls,
    MemoryCalls,
    ToolCalls,
    ProcessCalls,
    DurableCalls,
):
    """An agent's view of its process. Methods raise the errors that `ipc.syscalls` names for their call."""

    __slots__ = ()
