"""Refuses folders that other users can change, because the daemon executes and believes what lies in them.

Called once by the daemon, before it opens a file in its folders. It logs what is only unusual, and never changes an
existing folder. `listener` checks the folder of the socket in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import structlog

import llmosd
from ipc.errors import ConfigError
from kernel.lib import trust
from kernel.lib.private_files import make_private
from llmosd.daemon.settings import Settings

log = structlog.get_logger("llmosd")


def check(settings: Settings) -> None:
    """Check the folders of the state, cache and agents, and make that of the cache. Raises `ConfigError`."""
    shipped, *folders = settings.agent_folders
    code = Path(llmosd.__file__).parent.stat().st_uid  # may own the shipped agents as well: it owns the daemon's code
    _check("state", [settings.state_path])
    _check("cache", [settings.cache_path])
    _check("agents", [shipped], owners=(code,))
    _check("agents", [path for folder in folders for path in (folder, *_programs(folder))])
    try:
        make_private(settings.cache_path)
    except OSError as error:  # drivers work without it
        log.warning("the cache folder cannot be made", cache=str(settings.cache_path), error=error.strerror)


def _check(key: str, paths: list[Path], owners: tuple[int, ...] = ()) -> None:
    """Raises `ConfigError` for the first danger, and logs the first oddity: a mounted folder may have thousands."""
    odd: dict[Path, str] = {}
    for path in paths:
        try:
            findings = trust.findings(path, owners=owners)
        except OSError as error:
            raise ConfigError(
                f"{key}: cannot examine {path}: {error.strerror}; choose another with {_flag(key)}", key=key
            ) from None
        for finding in findings:
            if finding.refused:
                raise ConfigError(f"{key}: {finding.sentence} with {_flag(key)}", key=key)
            odd.setdefault(finding.place, finding.sentence)
    if odd:
        why, *more = odd.values()
        log.warning("other users may change what the daemon uses", setting=key, why=why, more=len(more))


def _programs(folder: Path) -> Iterator[Path]:
    """The files and packages in a folder of agents."""
    try:
        yield from (path for path in sorted(folder.iterdir()) if path.suffix == ".py" or path.is_dir())
    except OSError:
        return  # the loader reports it


def _flag(key: str) -> str:
    return "LLMOSD_CACHE" if key == "cache" else f"--{key}"
