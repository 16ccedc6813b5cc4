"""The command `why`: one paragraph on what a process waits for, or on how it ended.

Called by the command line. The daemon derives the paragraph from its tables; this module only prints it.
"""

from __future__ import annotations

import argparse

from ipc.syscalls import Explanation, Why
from llmosd.cli import show
from llmosd.cli.options import Add, CommonOptions
from llmosd.client.blocking import Client
from llmosd.printable import printable_line


def add_commands(add: Add, common: CommonOptions) -> None:
    """Add the command to the command line."""
    command = add("why", parents=[common.process], help="explain what a process waits for, and what happens next")
    command.set_defaults(command=why)


def why(client: Client, options: argparse.Namespace) -> int:
    import shutil
    import textwrap

    explanation: Explanation = client.request(Why(options.pid))
    if options.json:
        show.value(explanation, as_json=True)
    else:
        width = shutil.get_terminal_size((80, 24)).columns
        print(textwrap.fill(printable_line(explanation.text), width=max(width, 20), break_on_hyphens=False))
    return 0
