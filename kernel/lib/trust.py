"""Finds out whether other users could change or replace a folder or a file, by the modes and owners on the way to it.

The daemon asks about its folders before it uses them, because it executes and believes what lies in them. Callers
refuse or warn. This module never changes a mode or an owner.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from kernel.lib.users import user_name

ROOT = 0
MAX_LINKS = 40  # followed on the way to one path, as in Linux
UID_MAP = "/proc/self/uid_map"
NOBODY = "/proc/sys/kernel/overflowuid"


class Finding(NamedTuple):
    """The folder, file or link `place` lets other users change a path. `refused`: too dangerous, not only unusual."""

    place: Path
    refused: bool
    sentence: str


class _PathStep(NamedTuple):
    """A folder, file or link on the way to a path. `last`: it is the path itself, not one of its parents."""

    path: Path
    status: os.stat_result
    last: bool

    @property
    def writable(self) -> int:
        """The bits of the mode by which other users can change what the path leads to."""
        mode = self.status.st_mode
        # In a sticky folder such as /tmp, only the owner of an entry can rename or remove it. The mode of a link is
        # without effect.
        if stat.S_ISLNK(mode) or (not self.last and mode & stat.S_ISVTX):
            return 0
        return mode & (stat.S_IWGRP | stat.S_IWOTH)


def findings(
    path: Path, *, owners: Collection[int] = (), sticky: bool = False, user: int | None = None
) -> list[Finding]:
    """All that lets other users change `path`, dangers first. If it does not exist yet, its parents are examined.

    `owners` may own it, besides root and `user`, by default the user of this process. `sticky`: other users may create
    entries in the folder `path` if they cannot replace ours. Raises `OSError` if a place cannot be examined.
    """
    user = os.geteuid() if user is None else user
    found = [finding for place in _steps_to(path) for finding in _of(place, path, user, owners, sticky)]
    return sorted(found, key=lambda finding: not finding.refused)


def _of(place: _PathStep, path: Path, user: int, owners: Collection[int], sticky: bool) -> Iterator[Finding]:
    at, status, last = place
    if place.writable & stat.S_IWOTH:
        shared = bool(status.st_mode & stat.S_ISVTX)  # made for everyone, such as /tmp
        remedy = "choose a folder of your own" if shared else f"`chmod o-w {at}`, or choose another path"
        yield Finding(at, not (sticky and shared), f"every user can write to {_named(place, path)}: {remedy}")
    elif place.writable and status.st_gid != ROOT:
        sentence = f"the users of group {status.st_gid} can write to {_named(place, path)}: `chmod g-w {at}`"
        yield Finding(at, False, sentence)
    if status.st_uid not in (ROOT, user, *owners):
        remedy = f"`chown {user_name(user)} {at}`, or choose another path"
        sentence = f"neither you nor root owns {_named(place, path)}: {remedy}"
        # In a container root is often the only user, and mounted folders have the owners of another machine. In a user
        # namespace all owners outside it look the same, those of / included.
        yield Finding(at, user != ROOT and (last or not _outside(status.st_uid)), sentence)


def _named(place: _PathStep, path: Path) -> str:
    at, status, last = place
    facts = f"owner {user_name(status.st_uid)}, mode {stat.S_IMODE(status.st_mode):04o}"
    return f"{at} ({facts})" if last else f"{at} ({facts}), on the way to {path}"


def _steps_to(path: Path) -> Iterator[_PathStep]:
    """The folders and links that lead to `path`, as far as they exist, from / on; then what is at `path`."""
    at, links = Path("/"), 0
    left = list(reversed((Path.cwd() / path).parts[1:]))
    yield _PathStep(at, os.lstat(at), not left)
    while left:
        part = left.pop()
        if part == "..":
            at = at.parent
            continue
        place = at / part
        try:
            status = os.lstat(place)
        except (FileNotFoundError, NotADirectoryError):
            return
        is_link = stat.S_ISLNK(status.st_mode)
        yield _PathStep(place, status, not left and not is_link)
        if not is_link:
            at = place
        elif (links := links + 1) <= MAX_LINKS:
            target = Path(os.readlink(place))
            if target.is_absolute():
                at = Path("/")
            left += reversed(target.parts[target.is_absolute() :])


def _outside(uid: int) -> bool:
    """Whether `uid` stands for all users outside of the user namespace in which this process runs."""
    with contextlib.suppress(OSError, ValueError):
        mapped = sum(int(line.split()[2]) for line in Path(UID_MAP).read_text().splitlines())
        return mapped < 2**32 - 1 and uid == int(Path(NOBODY).read_text())
    return False
