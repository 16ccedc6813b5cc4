"""The daemon refuses folders and settings that other users can change, and names the folder and the remedy."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from ipc.errors import ConfigError, SocketPathInvalid
from llmosd.daemon import ownership, settings
from llmosd.daemon.listener import SocketClaim
from llmosd.daemon.settings import Settings

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str, mode: int = 0o700) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        folder.chmod(mode)
        return folder

    return make


def test_the_default_folders_and_the_shipped_agents_pass(home: Path) -> None:
    config = Settings()
    with capture_logs() as lines:
        ownership.check(config)
    assert [line for line in lines if str(home) in line["why"]] == []
    assert stat.S_IMODE(config.cache_path.stat().st_mode) == 0o700


@pytest.mark.parametrize("key", ["state", "cache", "agents"])
@pytest.mark.parametrize("mode", [0o777, 0o1777])
def test_a_folder_that_everyone_can_write_to_is_refused(made: Callable[..., Path], key: str, mode: int) -> None:
    folder = made("open", mode)
    config = Settings(agents=[str(folder)]) if key == "agents" else Settings(**{key: str(folder)})
    with pytest.raises(ConfigError, match=f"^{key}: every user can write to {folder} ") as caught:
        ownership.check(config)
    assert caught.value.data == {"key": key}
    remedy = "choose a folder of your own" if mode & 0o1000 else f"`chmod o-w {folder}`, or choose another path"
    assert f"{remedy} with {'LLMOSD_CACHE' if key == 'cache' else f'--{key}'}" in caught.value.message


def test_a_folder_inside_one_that_everyone_can_write_to_is_refused(made: Callable[..., Path]) -> None:
    folder = made("open", 0o777) / "state"
    with pytest.raises(ConfigError, match="on the way to"):
        ownership.check(Settings(state=str(folder)))
    assert not folder.exists()


def test_a_folder_of_another_user_is_refused_except_by_root(
    made: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made("other")
    if os.getuid() == 0:
        os.chown(folder, 4242, -1)
    user = os.getuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: user)
    with pytest.raises(ConfigError, match="neither you nor root owns"):
        ownership.check(Settings(state=str(folder)))
    with pytest.raises(SocketPathInvalid, match="neither you nor root owns"):
        SocketClaim(folder / "s.sock")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with capture_logs() as lines:
        ownership.check(Settings(state=str(folder)))
    assert "state" in [line["setting"] for line in lines]


def test_a_folder_that_a_group_can_write_to_is_logged(made: Callable[..., Path]) -> None:
    folder = made("group", 0o770)
    if os.getuid() == 0:
        os.chown(folder, -1, 4242)
    with capture_logs() as lines:
        ownership.check(Settings(agents=[str(folder)]))
    assert [line["setting"] for line in lines if f"chmod g-w {folder}" in line["why"]] == ["agents"]


def test_a_mounted_folder_of_another_user_gives_root_one_line_of_the_log(
    made: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made("mounted")
    for number in range(9):
        (folder / f"{number}.py").write_text("")
    for path in (folder, *folder.iterdir()):
        if os.getuid() == 0:
            os.chown(path, 4242, -1)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with capture_logs() as lines:
        ownership.check(Settings(agents=[str(folder)]))
    (line,) = [line for line in lines if str(folder) in line["why"]]
    assert line["more"] >= 9


@pytest.mark.parametrize("name", ["agent.py", "package"])
def test_an_agent_that_everyone_can_change_is_refused(made: Callable[..., Path], name: str) -> None:
    folder = made("agents")
    (folder / "notes.txt").write_text("")
    (folder / "notes.txt").chmod(0o666)
    (folder / name).mkdir() if name == "package" else (folder / name).write_text("")
    ownership.check(Settings(agents=[str(folder)]))
    (folder / name).chmod(0o777)
    with pytest.raises(ConfigError, match=f"every user can write to {folder / name}"):
        ownership.check(Settings(agents=[str(folder)]))


def test_settings_that_everyone_can_change_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "llmosd.toml"
    file.write_text("model = 'simulated'")
    assert settings.load(file).model == "simulated"
    file.chmod(0o666)
    with pytest.raises(ConfigError, match=f"settings: every user can write to {file}"):
        settings.load(file)


def test_the_socket_may_be_in_a_sticky_folder_and_not_in_one_that_everyone_can_change(folder: Path) -> None:
    folder.chmod(0o777)
    with pytest.raises(SocketPathInvalid, match=f"socket: every user can write to {folder} .* with --socket"):
        SocketClaim(folder / "s.sock")
    folder.chmod(0o1777)
    with capture_logs() as lines:
        SocketClaim(folder / "s.sock").release()
    assert str(folder) in lines[0]["why"]
