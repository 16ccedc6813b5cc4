"""Swap files of the simulated device: the state of one sequence, with a checksum.

The device writes and reads these files. It never accepts a file that is damaged or belongs to another sequence.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from kernel.drivers.simulated.sequence import SimulatedSequence
from kernel.lib import failpoints
from kernel.lib.private_files import open_private


class _SwappedState(msgspec.Struct, array_like=True):
    prompt_ids: list[int]
    made: int


class _SwapFile(msgspec.Struct, array_like=True):
    checksum: bytes
    state: bytes


def write(path: str, sequence: SimulatedSequence) -> None:
    """Write the state of `sequence` to `path`, where the file appears whole or not at all. Raises `OSError`."""
    state = msgspec.msgpack.encode(_SwappedState(sequence.prompt_ids, sequence.generated))
    failpoints.point("swap.write")
    unfinished = Path(path + ".unfinished")
    with open(unfinished, "wb", opener=open_private) as file:
        file.write(msgspec.msgpack.encode(_SwapFile(_checksum(state), state)))
    failpoints.point("swap.rename")
    unfinished.replace(path)
    failpoints.point("swap.renamed")


def refusal(path: str, sequence: SimulatedSequence) -> str:
    """The reason why the file at `path` cannot be used for `sequence`; empty if the file can be used."""
    try:
        failpoints.point("swap.read")
        file = msgspec.msgpack.decode(Path(path).read_bytes(), type=_SwapFile)
        if file.checksum != _checksum(file.state):
            return "the swap file is damaged: its checksum is wrong"
        state = msgspec.msgpack.decode(file.state, type=_SwappedState)
    except OSError as error:
        return f"the swap file cannot be read: {error.strerror}"
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return "the swap file is damaged"
    if state != _SwappedState(sequence.prompt_ids, sequence.generated):
        return "the swap file belongs to another sequence, or to an earlier state of this one"
    return ""


def _checksum(state: bytes) -> bytes:
    return hashlib.blake2b(state, digest_size=16).digest()
