"""How long a message takes over a link: by the formula, and packet by packet.

Asked by the textbook. It sends nothing.
"""

from __future__ import annotations

LIGHT = 2e8  # metres a second in fibre or copper
PACKET = 1500  # bytes


def seconds(length: int, distance: float, bandwidth: float) -> float:
    """Until the last bit of `length` bytes has arrived, over `distance` metres at `bandwidth` bits a second."""
    return distance / LIGHT + 8 * length / bandwidth


def simulated_seconds(length: int, distance: float, bandwidth: float) -> float:
    """The same, packet by packet: the link takes the next one when the one before has left."""
    free = arrived = 0.0
    left = length
    while left > 0:
        size = min(left, PACKET)
        left -= size
        free += 8 * size / bandwidth
        arrived = free + distance / LIGHT
    return arrived
