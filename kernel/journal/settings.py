"""The settings of the journal, and the names of its files. Data only."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta


class JournalSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How safe and for how long.

    `sync` "full": what was acknowledged survives a power cut; "normal": it survives the daemon's death, but a power
    cut or a crash of the machine may lose the last of it. `keep`: seconds for which the results of ended tasks are
    kept. `attempts`: how often a task is run while the daemon dies over it, before it is failed.
    """

    sync: Literal["full", "normal"] = "full"
    keep: Annotated[float, Meta(ge=0)] = 86_400.0
    attempts: Annotated[int, Meta(ge=1)] = 5


FILE = "journal.sqlite"  # in the state folder
LOCK = "journal.lock"
