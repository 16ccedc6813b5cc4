"""The folders of the user, by the XDG base directory specification.

Used by the settings of the daemon and by the command line. It never creates a folder.
"""

from __future__ import annotations

import os
from pathlib import Path


def xdg(variable: str, default: str) -> Path:
    """A folder of the XDG base directory specification: the value of `variable`, or `default` in the home folder."""
    return Path(os.environ.get(variable) or Path.home() / default)


def state_folder() -> Path:
    """The default folder of everything that survives a program, such as the journal of the daemon."""
    return xdg("XDG_STATE_HOME", ".local/state") / "llmosd"
