"""A device model: the costs of a step and the size of the KV memory, as an object and as a TOML file.

The commands and the benches load it, the simulated engine uses it, and `llmos calibrate` writes it. It holds figures
and simulates nothing.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from ipc.errors import InvalidDevice
from llmosd.daemon.settings import shared

DEFAULT = "smollm2"

Cost = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=0)]


class DeviceModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The costs of a device, in seconds.

    A step takes `step + sequence * S + prompt * P + context * C`: it has S sequences, reads P prompt tokens, and its
    sequences attend to C tokens in their KV caches. A step that reads any prompt takes `reading` more.

    A step reads at most `chunk` prompt tokens (0: whole prompts). While other sequences make tokens, it reads fewer, so
    that the step takes at most `slower` times as long as without them, but at least `tile` tokens (Agrawal et al.,
    "Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve", OSDI 2024, section 4.2). With `slower` 0
    only `chunk` limits them. `memory`: tokens that fit in the KV memory, 0 for no bound. Swapping a sequence of N
    tokens out or in takes `swap + swap_token * N` seconds. `name` and `source` say which device was measured. `error`
    is the mean relative error of these costs over the measured batches, `worst` the largest.
    """

    step: Cost
    sequence: Cost = 0.0
    prompt: Cost = 0.0
    context: Cost = 0.0
    reading: Cost = 0.0
    chunk: Count = 0
    slower: Cost = 0.0
    tile: Annotated[int, Meta(ge=1)] = 32
    memory: Count = 0
    swap: Cost = 0.0
    swap_token: Cost = 0.0
    slots: Annotated[int, Meta(ge=1)] = 4
    name: str = "device"
    source: str = ""
    error: float | None = None
    worst: float | None = None

    def step_seconds(self, sequences: int, read: int = 0, context: int = 0) -> float:
        """Seconds of a step with `sequences` sequences, `read` prompt tokens, and `context` tokens to attend to."""
        seconds = self.step + self.sequence * sequences + self.prompt * read + self.context * context
        return seconds + self.reading if read else seconds

    def prefill_budget(self, decoding: int, context: int) -> int:
        """The most prompt tokens that a step reads beside `decoding` sequences; 0 for no bound."""
        if not decoding or not self.slower or not self.prompt:
            return self.chunk
        spare = (self.slower - 1) * self.step_seconds(decoding, 0, context) - self.reading
        budget = max(int(spare / self.prompt), self.tile)
        return min(budget, self.chunk) if self.chunk else budget

    def swap_seconds(self, tokens: int) -> float:
        """Seconds to swap a sequence of `tokens` tokens out, or in."""
        return self.swap + self.swap_token * tokens


def find(name: str | None) -> DeviceModel:
    """The device `name`: a file, or one that ships with llmosd; None means `DEFAULT`. Raises `InvalidDevice`."""
    name = name or DEFAULT
    path = Path(os.path.expanduser(name))
    if path.suffix or path.is_file():
        return read(path)
    folder = shared("config") / "devices"
    known = sorted(file.stem for file in folder.glob("*.toml"))
    if name not in known:
        raise InvalidDevice(f"no device {name!r}; there are: {', '.join(known)}, or name a file of `llmos calibrate`")
    return read(folder / f"{name}.toml")


def read(path: Path) -> DeviceModel:
    """Read a device from a TOML file. Raises `InvalidDevice`, which names the file and the key."""
    try:
        device = msgspec.convert(tomllib.loads(path.read_text()), DeviceModel)
    except OSError as error:
        raise InvalidDevice(f"{path}: {error.strerror}; `llmos calibrate` writes such a file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidDevice(f"{path}: not TOML: {error}; `llmos calibrate` writes such a file") from None
    except msgspec.ValidationError as error:
        allowed = ", ".join(DeviceModel.__struct_fields__)
        raise InvalidDevice(f"{path}: {error}; allowed: {allowed}") from None
    if device.step_seconds(1) <= 0:
        raise InvalidDevice(f"{path}: a step takes no time; set step or sequence above 0")
    return device


def write(device: DeviceModel, path: Path) -> None:
    """Write `device` as a TOML file."""
    lines = ["# Costs of a device in seconds, for `llmos simulate --device`."]
    for name, value in msgspec.structs.asdict(device).items():
        if isinstance(value, str):
            lines.append(f"{name} = {msgspec.json.encode(value).decode()}")
        elif value is not None:
            lines.append(f"{name} = {value!r}")
    path.write_text("\n".join(lines) + "\n")
