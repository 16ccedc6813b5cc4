"""The settings of the journal, and the names of its files.

Read by the daemon and by the journal. Data only: it never touches a file.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta


class JournalSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How safely the journal stores tasks, and for how long.

    `sync` "full": an acknowledged task survives a power cut. `sync` "normal": an acknowledged task survives the death
    of the daemon, but a power cut or a crash of the machine may lose the last tasks. `keep`: seconds for which ended
    tasks are retained; every `purge_every` seconds, older ones are deleted. `attempts`: a task fails when the daemon
    has died this many times while the task was running. Of these deaths, all after the second count only if the task
    ran alone; above 100 attempts, every death counts.
    """

    sync: Literal["full", "normal"] = "full"
    keep: Annotated[float, Meta(ge=0)] = 86_400.0
    purge_every: Annotated[float, Meta(gt=0, le=60)] = 60.0
    attempts: Annotated[int, Meta(ge=1)] = 5


FILE = "journal.sqlite"  # in the state folder
LOCK = "journal.lock"
