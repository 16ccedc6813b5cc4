"""Clients of a daemon that breaks the protocol or does not welcome them stop, and say why."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from ipc.codec import encode
from ipc.errors import ConnectionLost, FrameTooLarge, NoDaemon, VersionMismatch, to_wire
from ipc.frames import HEADER, MAX_FRAME, frame
from ipc.protocol import Answer, Failure
from llmosd import AsyncClient, Client
from llmosd.client import bounds


def test_a_client_that_lost_the_border_of_the_frames_reads_no_more():
    client, (ours, theirs) = Client("/x"), socket.socketpair()
    client._connection = ours
    theirs.sendall(HEADER.pack(MAX_FRAME + 1) + frame(encode(Answer(2, ["pong"]))))
    with pytest.raises(FrameTooLarge):
        client.ping()
    with pytest.raises(ConnectionLost, match="not connected"):
        client.ping()
    theirs.close()


@pytest.mark.real_time
@pytest.mark.parametrize("refused", [True, False])
async def test_a_connection_that_is_not_welcomed_is_closed(
    refused: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a refusal or a timeout the client leaves no connection open that the daemon would have to serve."""
    ended: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if refused:
            writer.write(frame(encode(Failure(0, to_wire(VersionMismatch("another version"))))))
        await reader.readuntil(b"async client")
        ended.set_result(await reader.read())
        writer.close()

    monkeypatch.setattr(bounds, "CONNECT_TIMEOUT", 30.0 if refused else 0.3)
    server = await asyncio.start_unix_server(serve, folder / "s.sock")
    with pytest.raises(VersionMismatch if refused else NoDaemon):
        await AsyncClient(folder / "s.sock").connect()
    async with asyncio.timeout(30):
        await ended
    server.close()


@pytest.mark.real_time
@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_a_daemon_that_closes_the_connection_instead_of_welcoming_is_none(
    kind: type[Client | AsyncClient], folder: Path
) -> None:
    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async def connect() -> None:
        client = kind(folder / "s.sock")
        await (client.connect() if isinstance(client, AsyncClient) else asyncio.to_thread(client.connect))

    server = await asyncio.start_unix_server(close, folder / "s.sock")
    with pytest.raises(NoDaemon, match=r"does not answer: .*closed the connection"):
        await connect()
    server.close()
