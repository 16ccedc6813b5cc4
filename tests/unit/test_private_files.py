"""The daemon's own files are for its user alone, and no link leads it to another file."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import nullcontext
from pathlib import Path

import pytest

from kernel.lib.private_files import make_private, open_private

APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    os.close(open_private(tmp_path / "file", APPEND))
    assert mode(tmp_path / "file") == 0o600


def test_an_old_file_loses_the_rights_of_others(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("before ")
    (tmp_path / "file").chmod(0o664)
    with open(open_private(tmp_path / "file", APPEND), "w") as file:
        file.write("after")
    assert mode(tmp_path / "file") == 0o600
    assert (tmp_path / "file").read_text() == "before after"


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "file").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic link"):
        open_private(tmp_path / "file", APPEND)
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize("flags", [APPEND, os.O_RDONLY, os.O_RDWR | os.O_CREAT])
def test_a_named_pipe_is_refused_without_a_wait(tmp_path: Path, flags: int) -> None:
    os.mkfifo(tmp_path / "file")
    with pytest.raises(OSError, match="no regular file"):
        open_private(tmp_path / "file", flags)


def test_a_file_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    if os.geteuid() == 0:
        os.chown(tmp_path / "file", 4242, -1)
    monkeypatch.setattr(os, "geteuid", lambda: 4243)
    with pytest.raises(OSError, match="belongs to user"):
        open_private(tmp_path / "file", APPEND)


def test_all_folders_that_are_made_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make_private(tmp_path / "a" / "b" / "c")
    finally:
        os.umask(before)
    assert {mode(tmp_path / name) for name in ("a", "a/b", "a/b/c")} == {0o700}
    make_private(tmp_path / "a")


def test_a_file_in_the_place_of_a_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        make_private(tmp_path / "file")
    with pytest.raises(NotADirectoryError):
        make_private(tmp_path / "file" / "below")


def test_a_new_folder_and_its_new_parents_are_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.readlink(f"/proc/self/fd/{file}")))
    make_private(tmp_path / "one" / "two")
    assert synced == [str(tmp_path), str(tmp_path / "one")]
    make_private(tmp_path / "one" / "two")
    assert len(synced) == 2


@pytest.mark.parametrize(("number", "raises"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_a_folder_that_cannot_be_synced_is_an_error_only_if_the_disk_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, raises: bool
) -> None:
    def fail(file: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output") if raises else nullcontext():
        make_private(tmp_path / "one")


def test_a_folder_that_the_file_system_refuses_to_make_is_an_error() -> None:
    with pytest.raises(OSError, match="/proc/"):
        make_private(Path("/proc/no such folder/below"))
