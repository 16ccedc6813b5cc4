"""The context: what an agent sees of the kernel. Each method is one system call.

Made by the daemon for every process and handed to its coroutine. It holds no state of its own and decides nothing:
the gate does. One file a subject.
"""

from __future__ import annotations

from llmosd.context.durable import DurableMethods
from llmosd.context.memory import MemoryMethods
from llmosd.context.messages import MessageMethods
from llmosd.context.models import ChatOptions, ModelMethods
from llmosd.context.processes import ProcessMethods
from llmosd.context.supervision import SupervisionMethods
from llmosd.context.sync import SyncMethods
from llmosd.context.tools import ToolMethods

__all__ = ["ChatOptions", "Context"]


class Context(
    ModelMethods,
    MessageMethods,
    SupervisionMethods,
    SyncMethods,
    MemoryMethods,
    ToolMethods,
    ProcessMethods,
    DurableMethods,
):
    """An agent's view of its process. Methods raise the errors that `ipc.syscalls` names for their call."""

    __slots__ = ()
