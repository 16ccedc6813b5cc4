"""The context: the interface between an agent and the kernel. Each method makes system calls. One file per subject.

The daemon makes a context for each process, and passes it to the coroutine of the process. A context stores only the
process and the gate. It never decides anything: the gate does. README.md in this folder is the manual.
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
    """The calls of an agent. Each method raises the errors that `ipc.syscalls` names for its call."""

    __slots__ = ()
