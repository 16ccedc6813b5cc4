"""The owner of a local client is the Unix user at the other end of the socket."""

from __future__ import annotations

import os
import pwd
import socket

import pytest

from ipc.unix import peer_uid
from kernel.lib.users import user_name


@pytest.fixture(autouse=True)
def forget():
    user_name.cache_clear()
    yield
    user_name.cache_clear()


def test_a_user_is_named_by_the_system():
    assert user_name(os.getuid()) == pwd.getpwuid(os.getuid()).pw_name


def test_a_user_without_a_name_is_named_by_its_number():
    taken = {entry.pw_uid for entry in pwd.getpwall()}
    free = next(uid for uid in range(50_000, 60_000) if uid not in taken)
    assert user_name(free) == f"uid-{free}"


def test_a_name_is_looked_up_once(monkeypatch):
    looked_up = []
    real = pwd.getpwuid
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: (looked_up.append(uid), real(uid))[1])
    assert user_name(os.getuid()) == user_name(os.getuid())
    assert looked_up == [os.getuid()]


def test_the_peer_of_a_socket_pair_is_this_user():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert peer_uid(ours) == os.getuid()
    assert peer_uid(None) is None
