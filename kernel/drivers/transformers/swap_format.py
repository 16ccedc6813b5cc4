"""The file of a swapped-out sequence: its KV, and a header to check that the KV belongs to the sequence.

`swap_io` calls it in a worker thread while the sequence does not run. A file consists of a header in msgpack and of
safetensors; it appears whole or not at all. `read` returns the same bits that `write` wrote, and never KV that fails
the check.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path

import msgspec
import safetensors.torch
import torch

from kernel.lib import failpoints
from kernel.lib.private_files import open_private

MAGIC = b"llmosd-swap-1\n"
LENGTH = struct.Struct("<I")
SAFETENSORS_LENGTH = struct.Struct("<Q")
NAME = "kv"
DIGEST = 16  # bytes of a checksum


class Header(msgspec.Struct, frozen=True):
    """The header of a swap file.

    `tokens`: the tokens of the sequence. The first `prompt` of them were computed as a prompt, and the file has the KV
    of the first `length`. `fingerprint`: a hash of the weights, and of the code and machine that compute with them.
    `checksum`: a hash of all bytes after the header.
    """

    tokens: list[int]
    prompt: int
    length: int
    fingerprint: str
    checksum: str


class UnusableSwapFile(Exception):
    """The swap file cannot be used; the message says why."""


def write(path: Path, kv: torch.Tensor, tokens: list[int], prompt: int, fingerprint: str) -> int:
    """Write the KV [layers, tokens, numbers] of a sequence. Returns the size of the file. Raises `OSError`."""
    data: list[bytes | memoryview] = [_safetensors_header(kv), *map(_bytes_of, kv)]
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        failpoints.point("swap.write")
        with ThreadPoolExecutor(1) as pool, open(unfinished, "wb", opener=open_private) as file:
            checksum = pool.submit(_checksum, data)  # takes half the time of the write; both release the GIL
            header = Header(tokens, prompt, kv.shape[1], fingerprint, "0" * 2 * DIGEST)
            start = len(_prologue(header))
            file.seek(start)
            file.writelines(data)
            file.seek(0)
            file.write(_prologue(msgspec.structs.replace(header, checksum=checksum.result())))
            file.flush()
            os.fsync(file.fileno())
        failpoints.point("swap.rename")
        unfinished.replace(path)
        failpoints.point("swap.renamed")
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
    return start + sum(map(len, data))


def move(source: Path, path: Path) -> int:
    """Rename a file of `write` from `source` to `path`. Returns the size of the file. Raises `OSError`."""
    source.replace(path)
    return path.stat().st_size


def read(path: Path, tokens: list[int], prompt: int, fingerprint: str) -> torch.Tensor:
    """The KV in the file at `path`. Raises `UnusableSwapFile` if it is not the KV of the sequence with `tokens`."""
    try:
        failpoints.point("swap.read")
        content = path.read_bytes()
    except OSError as error:
        raise UnusableSwapFile(f"{path} cannot be read: {error.strerror}") from None
    start = len(MAGIC) + LENGTH.size
    if content[: len(MAGIC)] != MAGIC or len(content) < start:
        raise UnusableSwapFile(f"{path} is not a swap file of this version")
    end = start + LENGTH.unpack_from(content, len(MAGIC))[0]
    data = memoryview(content)[end:]
    try:
        header = msgspec.msgpack.decode(content[start:end], type=Header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnusableSwapFile(f"{path} is damaged: {error}") from None
    if header.checksum != _checksum([data]):
        raise UnusableSwapFile(f"{path} is damaged: its checksum is wrong")
    if header.fingerprint != fingerprint:
        raise UnusableSwapFile(f"{path} was written with other weights or on another kind of machine")
    if header.tokens != tokens or header.prompt != prompt:
        raise UnusableSwapFile(f"{path} belongs to another sequence")
    kv = safetensors.torch.load(bytes(data))[NAME]
    if kv.shape[1] != header.length:
        raise UnusableSwapFile(f"{path} is damaged: it has {kv.shape[1]} tokens, its header says {header.length}")
    return kv


def _prologue(header: Header) -> bytes:
    encoded = msgspec.msgpack.encode(header)
    return MAGIC + LENGTH.pack(len(encoded)) + encoded


def _safetensors_header(kv: torch.Tensor) -> bytes:
    """The safetensors header of `kv`. The caller writes the numbers without a copy; the library would make three."""
    empty = safetensors.torch.save({NAME: kv[:0]})
    (length,) = SAFETENSORS_LENGTH.unpack_from(empty)
    described = msgspec.json.decode(empty[SAFETENSORS_LENGTH.size : SAFETENSORS_LENGTH.size + length])
    described[NAME] |= {"shape": list(kv.shape), "data_offsets": [0, kv.nbytes]}
    encoded = msgspec.json.encode(described)
    encoded += b" " * (-len(encoded) % SAFETENSORS_LENGTH.size)
    return SAFETENSORS_LENGTH.pack(len(encoded)) + encoded


def _bytes_of(layer: torch.Tensor) -> memoryview:
    return memoryview(layer.contiguous().cpu().flatten().view(torch.uint8).numpy())


def _checksum(parts: Iterable[bytes | memoryview]) -> str:
    digest = blake2b(digest_size=DIGEST)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
