"""Every text in every system call is bounded: a text of a million characters is refused, in a short error.

The exceptions are contents, which have bounds of their own in bytes: prompts, bodies, values and lines of logs.
"""

from __future__ import annotations

import asyncio
import typing
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ipc.codec import encode
from ipc.errors import LlmosError, to_wire
from ipc.syscalls import ChatMessage, Child, Syscall
from kernel.gate import CLIENTS_ONLY
from kernel.journal.journal import Journal
from kernel.journal.settings import JournalSettings
from llmosd.context import Context
from tests.support.agents import forever, make_call
from tests.support.boot import boot
from tests.support.system import System

LONG = "x" * 1_000_000
SHORT = 4_000  # bytes of an encoded error

CONTENTS = {
    "Generate.prompt",
    "ScoreText.prompt",
    "ScoreText.continuations",
    "EmbedTexts.texts",
    "Ping.payload",
    "WriteLog.event",
    "WriteLog.fields",
    "MemoryKeys.prefix",  # only compared
    "Submit.key",  # only from a socket, where the decoder checks it
}


@pytest.fixture
async def system(tmp_path: Path) -> AsyncIterator[System]:
    system = boot(tmp_path, journal=Journal(tmp_path, JournalSettings()))
    yield system
    await system.kernel.drain(0)
    await system.kernel.close()


def kinds(kind: type[Syscall] = Syscall) -> Iterator[type[Syscall]]:
    for one in kind.__subclasses__():
        if one.__module__.startswith("ipc.syscalls"):
            yield one
            yield from kinds(one)


def has_text(hint: Any) -> bool:
    return hint is str or any(map(has_text, typing.get_args(hint)))


def text_fields() -> Iterator[tuple[type[Syscall], str]]:
    for kind in sorted(kinds(), key=lambda kind: kind.__name__):
        hints = typing.get_type_hints(kind)
        for name in kind.__struct_fields__:
            if has_text(hints[name]) and f"{kind.__name__}.{name}" not in CONTENTS:
                yield kind, name


def with_text(hint: Any, text: str) -> Any:
    """A value of the type `hint` with `text` in it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is str:
        return text
    if origin is list or origin is tuple:
        return origin([with_text(arguments[0], text)])
    if origin is dict:
        return {text: 1.0}
    return with_text(next(one for one in arguments if has_text(one)), text)


def sample(kind: type[Syscall], name: str) -> Any:
    """A value for a field without a default."""
    hint = typing.get_type_hints(kind)[name]
    special = {"pid": 2, "to": 2, "program": "forever", "children": [Child("forever")], "permits": 1, "parties": 1}
    special |= {"prompt": [ChatMessage("user", "hello")], "name": "name", "key": "key", "path": "/dev/null/none"}
    if name in special:
        return special[name]
    return with_text(hint, "text") if has_text(hint) else 1


def call_with(kind: type[Syscall], name: str) -> Syscall:
    hints = typing.get_type_hints(kind)
    values = {
        field.name: sample(kind, field.name)
        for field in msgspec.structs.fields(kind)
        if field.required and field.name != name
    }
    return kind(**values, **{name: with_text(hints[name], LONG)})


@pytest.mark.parametrize(("kind", "name"), list(text_fields()), ids=lambda value: getattr(value, "__name__", value))
async def test_a_text_of_a_million_characters_is_refused(system: System, kind: type[Syscall], name: str) -> None:
    call = call_with(kind, name)

    async def caller(ctx: Context) -> int:
        async with asyncio.timeout(1000):
            try:
                await make_call(ctx, call, system.client if kind in CLIENTS_ONLY else None)
            except LlmosError as error:
                return len(encode(to_wire(error)))
        return 0

    system.spawn(forever)
    size = await system.result(system.spawn(caller))
    assert 0 < size < SHORT
