"""The command `why`: one paragraph on what a process or a task waits for, or on how it ended.

Called by the command line. The daemon derives the paragraph from its tables; this module only prints it.
"""

from __future__ import annotations

import argparse

from ipc.syscalls import Explanation, Why
from llmosd.cli import show
from llmosd.cli.options import Add, CommonOptions
from llmosd.cli.targets import TaskId
from llmosd.client.blocking import Client
from llmosd.printable import printable_line


def add_commands(add: Add, common: CommonOptions) -> None:
    """Add the command to the command line."""
    command = add("why", parents=[common.process_or_task], help="explain what a process or a task waits for")
    command.set_defaults(command=why)


def why(client: Client, options: argparse.Namespace) -> int:
    import shutil
    import textwrap

    subject = Why(task=options.pid.id) if isinstance(options.pid, TaskId) else Why(options.pid)
    explanation: Explanation = client.request(subject)
    if options.json:
        show.value(explanation, as_json=True)
    else:
        width = shutil.get_terminal_size((80, 24)).columns
        print(textwrap.fill(printable_line(explanation.text), width=max(width, 20), break_on_hyphens=False))
    return 0
