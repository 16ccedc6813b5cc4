"""Entry point of the simulated driver: `python -P -m kernel.drivers.simulated FD PARENT_PID`.

The kernel starts it with one end of a socket pair, whose descriptor is FD. The driver never outlives the kernel.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys

from ipc.codec import ENCODER, decode
from ipc.transport import FramedProtocol
from kernel.drivers import protocol
from kernel.drivers.child import die_with_parent
from kernel.drivers.simulated.device import SimulatedDevice
from kernel.lib import failpoints


class _KernelConnection(FramedProtocol):
    """The driver's end of the socket, on the driver's own loop."""

    def __init__(self) -> None:
        super().__init__()
        self.device = SimulatedDevice(lambda message: self.send_frame(ENCODER.encode(message)))

    def frame_received(self, payload: bytes) -> None:
        self.device.handle(decode(payload, protocol.ToDriver))

    def closed(self) -> None:
        os._exit(0)


async def _serve(descriptor: int) -> None:
    connection = socket.socket(fileno=descriptor)
    _, kernel = await asyncio.get_running_loop().create_connection(_KernelConnection, sock=connection)
    await kernel.device.run()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(int(sys.argv[2]))
    failpoints.arm()
    asyncio.run(_serve(int(sys.argv[1])))
