"""Frames: whole however the stream is cut, and refused at the header if too long."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc.errors import FrameTooLarge
from ipc.frames import HEADER, FrameDecoder, frame


@given(payloads=st.lists(st.binary(max_size=50), max_size=10), cuts=st.lists(st.integers(0, 600), max_size=20))
def test_frames_come_out_as_they_went_in_however_the_stream_is_cut(payloads: list[bytes], cuts: list[int]) -> None:
    data = b"".join(map(frame, payloads))
    borders = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    decoder = FrameDecoder()
    got = [payload for start, end in itertools.pairwise(borders) for payload in decoder.feed(data[start:end])]
    assert got == payloads
    assert decoder.pending == 0


def test_a_frame_may_come_byte_by_byte() -> None:
    decoder = FrameDecoder()
    data = frame(b"hello") + frame(b"") + frame(b"you")
    assert [payload for byte in data for payload in decoder.feed(bytes([byte]))] == [b"hello", b"", b"you"]


@given(limit=st.integers(0, 100), over=st.integers(1, 1000), before=st.binary(max_size=20), cut=st.integers(1, 4))
def test_a_frame_over_the_limit_is_refused_at_its_header(limit: int, over: int, before: bytes, cut: int) -> None:
    decoder = FrameDecoder(limit)
    header = HEADER.pack(limit + over)
    first = frame(before[:limit]) + header[:cut]
    got: list[bytes] = []

    def feed() -> None:
        for piece in (first, header[cut:] + b"x"):
            for payload in decoder.feed(piece):
                got.append(payload)  # noqa: PERF402 - the payloads before the error count

    with pytest.raises(FrameTooLarge) as caught:
        feed()
    assert got == [before[:limit]]
    assert caught.value.data == {"length": limit + over, "limit": limit}
    assert decoder.pending <= 8


def test_a_frame_of_exactly_the_limit_passes() -> None:
    decoder = FrameDecoder(10)
    assert list(decoder.feed(frame(b"0123456789"))) == [b"0123456789"]


def test_a_decoder_knows_the_length_of_the_frame_that_is_incomplete() -> None:
    decoder = FrameDecoder()
    data = frame(b"hello") + frame(b"you")
    assert (decoder.incomplete, decoder.changed) == (0, False)
    seen = []
    for byte in data:
        list(decoder.feed(bytes([byte])))
        seen.append((decoder.incomplete, decoder.changed))
        decoder.changed = False
    begun = [(4, True), (4, False), (4, False)]  # the length is unknown until the header is complete
    assert seen == [
        *begun, *([(9, True)] + [(9, False)] * 4), (0, True),
        *begun, *([(7, True)] + [(7, False)] * 2), (0, True),
    ]  # fmt: skip
    assert [*decoder.feed(data + frame(b"next")[:6])] == [b"hello", b"you"]
    assert (decoder.incomplete, decoder.changed) == (8, True)
