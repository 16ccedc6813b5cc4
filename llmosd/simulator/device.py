"""A device by its costs: what a step takes, and what fits.

Found by the commands and the benches, read by the simulated engine, written by the calibration. The file form is TOML.
It holds figures and simulates nothing.
"""

from __future__ import annotations

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
    """What the steps of a device cost, in seconds.

    A step takes `step + sequence * sequences in it + prompt * tokens of prompts read in it + context * tokens whose
    keys and values the sequences in it attend to`, and `reading` more if it reads any prompt.

    Prompts are read `chunk` tokens a step (0: whole); while others make tokens, as many as make the step up to `slower`
    times as long, but no fewer than `tile` (Agrawal et al., "Taming Throughput-Latency Tradeoff in LLM Inference with
    Sarathi-Serve", OSDI 2024, section 4.2; 0: as many as alone). `memory`: tokens whose keys and values fit, 0: all. To
    swap a sequence out or in takes `swap + swap_token * its tokens` seconds. `name` and `source` say what was measured,
    `error` by which share of a step the model is off on average, `worst` at most.
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
        """Seconds of one step."""
        seconds = self.step + self.sequence * sequences + self.prompt * read + self.context * context
        return seconds + self.reading if read else seconds

    def room(self, decoding: int, context: int) -> int:
        """Tokens of prompts that a step reads at most beside `decoding` sequences; 0: all there are."""
        if not decoding or not self.slower or not self.prompt:
            return self.chunk
        spare = (self.slower - 1) * self.step_seconds(decoding, 0, context) - self.reading
        room = max(int(spare / self.prompt), self.tile)
        return min(room, self.chunk) if self.chunk else room

    def swap_seconds(self, tokens: int) -> float:
        """Seconds to write so many tokens out, or to read them back."""
        return self.swap + self.swap_token * tokens


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


def read(path: Path) -> DeviceModel:
    """The device in a TOML file. Raises `InvalidDevice`, which names the file and the key."""
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
        raise InvalidDevice(f"{path}: a step takes no time: step or sequence has to be above 0")
    return device


def write(device: DeviceModel, path: Path) -> None:
    """The device as a TOML file."""
    lines = ["# A device by its costs in seconds; `llmos simulate --device` reads it."]
    for name, value in msgspec.structs.asdict(device).items():
        if isinstance(value, str):
            lines.append(f"{name} = {msgspec.json.encode(value).decode()}")
        elif value is not None:
            lines.append(f"{name} = {value!r}")
    path.write_text("\n".join(lines) + "\n")
