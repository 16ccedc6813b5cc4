"""Reads the header of a GGUF file: its metadata, and the names, types and places of its tensors.

`conversion` calls it before transformers reads the file, so that a file without some part is refused by the name of
that part. The reader of the package `gguf` makes objects for each token, which takes seconds; this one skips the lists
of strings. It never reads a tensor.
"""

from __future__ import annotations

import struct
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from kernel.drivers.transformers.checkpoint import UnfitFiles
from kernel.drivers.transformers.file_kinds import head_of

MAGIC, VERSIONS, ALIGNMENT = b"GGUF", (2, 3), 32
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}  # by their type
STRING, ARRAY = 8, 9
MAX_TEXT = 1 << 26  # bytes; a longer string, such as a chat template, means that the file is damaged
MAX_TENSORS = 1 << 20


class GGUFTensor(NamedTuple):
    """`kind` is the number of its type, `offset` its place after the beginning of the data."""

    shape: tuple[int, ...]
    kind: int
    offset: int


class GGUFHeader(NamedTuple):
    """The metadata of a GGUF file (of a list of strings only the length), its tensors, and where their data begins."""

    fields: dict[str, Any]
    tensors: dict[str, GGUFTensor]
    data: int


def read_header(path: Path) -> GGUFHeader:
    """The header of the GGUF file at `path`. Raises `UnfitFiles` if it is damaged or no such file.

    Raises `ModelLoadFailed` for the remains of a failed download.
    """
    head_of(path)
    try:
        with path.open("rb") as file:
            return _read(file)
    except (ValueError, struct.error, OverflowError, MemoryError) as error:
        raise UnfitFiles(
            f"{path} is truncated or damaged, or is no GGUF file ({error}); download or copy it again"
        ) from error


def refuse_truncated(path: Path, header: GGUFHeader) -> None:
    """Raise `UnfitFiles` if the file at `path` ends before its last tensor does."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    size = path.stat().st_size
    for name, tensor in header.tensors.items():
        try:
            in_block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.kind)]
        except (ValueError, KeyError):
            raise UnfitFiles(
                f"{path}: the tensor {name} is of type {tensor.kind}, which the installed package gguf does not know; "
                f"update gguf, or use another quantisation of the model"
            ) from None
        end = header.data + tensor.offset + prod(tensor.shape) // in_block * block_bytes
        if end > size:
            raise UnfitFiles(
                f"{path} is truncated: it has {size} bytes, but its tensor {name} ends at byte {end}; download or "
                f"copy it again"
            )


def _read(file: BinaryIO) -> GGUFHeader:
    if file.read(len(MAGIC)) != MAGIC:
        raise ValueError("it does not begin with GGUF")
    (version,) = _unpack(file, "I")
    if version not in VERSIONS:
        raise ValueError(f"version {version} of the format is not supported")
    tensors, count = _unpack(file, "QQ")
    if tensors > MAX_TENSORS:
        raise ValueError(f"it has {tensors} tensors")
    fields: dict[str, Any] = {}
    for _ in range(count):
        key = _string(file)
        fields[key] = _value(file, _unpack(file, "I")[0])
    found = {}
    for _ in range(tensors):
        name = _string(file)
        (dimensions,) = _unpack(file, "I")
        if dimensions > 8:
            raise ValueError(f"the tensor {name!r} has {dimensions} dimensions")
        shape = _unpack(file, f"{dimensions}Q")
        found[name] = GGUFTensor(tuple(reversed(shape)), *_unpack(file, "IQ"))
    alignment = int(fields.get("general.alignment") or ALIGNMENT)
    return GGUFHeader(fields, found, -(-file.tell() // alignment) * alignment)


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == STRING:
        return _string(file)
    if kind != ARRAY:
        return _unpack(file, _number(kind))[0]
    kind, count = _unpack(file, "IQ")
    if kind == STRING:
        for _ in range(count):
            _bytes(file)
        return count
    format_ = f"{count}{_number(kind)}"
    if struct.calcsize("<" + format_) > MAX_TEXT:
        raise ValueError(f"a list of {count} numbers")
    return list(_unpack(file, format_))


def _number(kind: int) -> str:
    if kind not in NUMBERS:
        raise ValueError(f"a value of type {kind}")
    return NUMBERS[kind]


def _string(file: BinaryIO) -> str:
    return _bytes(file).decode(errors="replace")


def _bytes(file: BinaryIO) -> bytes:
    (length,) = _unpack(file, "Q")
    if length > MAX_TEXT:
        raise ValueError(f"a string of {length} bytes")
    content = file.read(length)
    if len(content) < length:
        raise ValueError("it ends within its header")
    return content


def _unpack(file: BinaryIO, format_: str) -> tuple[Any, ...]:
    return struct.unpack("<" + format_, file.read(struct.calcsize("<" + format_)))
