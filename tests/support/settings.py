"""A settings file in the home folder of a test, and the settings that a daemon would start with.

Used by the tests of settings. It never reads the environment of this machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmosd.daemon.settings import load


def config(home: Path, text: str) -> Path:
    path = home / "config" / "llmosd" / "llmosd.toml"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return path


def settings(**flags: Any) -> Any:
    return load(flags=flags, environment={})
