"""No link leads the journal to another file: neither its own name, nor the names that SQLite gives to other files."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from ipc.errors import JournalUnavailable
from kernel.journal.store import open_store


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-journal"])
def test_a_link_in_the_place_of_a_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "journal.sqlite"
    link, victim = tmp_path / f"journal.sqlite{suffix}", tmp_path / "victim"
    link.symlink_to(victim)
    with pytest.raises(JournalUnavailable, match=f"{link}: it is a symbolic link.*remove it"):
        open_store(path, "normal")
    assert not victim.exists()
    link.unlink()
    open_store(path, "normal").close()


def test_the_folder_may_be_reached_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    open_store(tmp_path / "link" / "journal.sqlite", "normal").close()
    assert (tmp_path / "real" / "journal.sqlite").exists()


def test_a_journal_that_others_could_read_becomes_private(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    open_store(path, "normal").close()
    path.chmod(0o644)
    store = open_store(path, "normal")
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}
    store.close()


def test_a_named_pipe_does_not_hold_up_a_start(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "journal.sqlite")
    with pytest.raises(JournalUnavailable, match="no regular file"):
        open_store(tmp_path / "journal.sqlite", "normal")
