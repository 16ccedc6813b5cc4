"""Finds a device: a file by its path, or one that ships with llmosd by its name.

Asked by the commands and the benches.
"""

from __future__ import annotations

from pathlib import Path

from ipc.errors import InvalidDevice
from llmosd.settings import shared
from llmosd.simulator.device import DeviceModel, read

DEFAULT = "smollm2"


def find(name: str | None) -> DeviceModel:
    """The device `name`: a file, or one of those that ship; None is `DEFAULT`. Raises `InvalidDevice`."""
    name = name or DEFAULT
    path = Path(name).expanduser()
    if path.suffix or path.is_file():
        return read(path)
    folder = shared("config") / "devices"
    known = sorted(file.stem for file in folder.glob("*.toml"))
    if name not in known:
        raise InvalidDevice(f"no device {name!r}; there are: {', '.join(known)}, or a file of `llmos calibrate`")
    return read(folder / f"{name}.toml")
