"""Settings: the shipped defaults, the user's file, the environment and the flags, in that order, as one typed Struct.

Loaded once by the daemon. For an unknown key or a wrong value it raises `ConfigError`, which names the place, the key
and the allowed values. It never writes a file.
"""

from __future__ import annotations

import contextlib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from ipc.errors import ConfigError, InvalidPolicy
from ipc.unix import default_socket
from kernel.journal.settings import JournalSettings
from kernel.lib import trust
from kernel.memory.quotas import MemoryQuotas
from kernel.models.settings import ResourceSettings, SchedulingSettings
from kernel.models.spec import ModelSpec, looks_local
from kernel.processes.limits import LimitSettings
from kernel.programs.suggestion import did_you_mean, similar
from kernel.programs.tool import ToolSpec
from llmosd.folders import state_folder, xdg

T = TypeVar("T", bound=msgspec.Struct)

ENVIRONMENT = {
    "LLMOSD_SOCKET": "socket",
    "LLMOSD_STATE": "state",
    "LLMOSD_CACHE": "cache",
    "LLMOSD_MODEL": "model",
    "LLMOSD_LOG_LEVEL": "log_level",
    "LLMOSD_LOG_FORMAT": "log_format",
    "LLMOSD_PRELOAD": "preload",
    "LLMOSD_DRAIN_SECONDS": "drain_seconds",
}


SECTIONS: dict[str, Any] = {
    "memory": MemoryQuotas,
    "scheduling": SchedulingSettings,
    "limits": LimitSettings,
    "resources": ResourceSettings,
    "journal": JournalSettings,
}


class Settings(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """All settings; `config/llmosd.toml` explains each."""

    socket: str = ""
    state: str = ""
    cache: str = ""
    agents: list[str] = []
    model: str = "smollm2"
    preload: bool = True
    drain_seconds: Annotated[float, Meta(ge=0)] = 10.0
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "human", "json"] = "auto"
    models: dict[str, ModelSpec] = {}
    memory: MemoryQuotas = MemoryQuotas()
    tools: dict[str, ToolSpec] = {}
    scheduling: SchedulingSettings = SchedulingSettings()
    limits: LimitSettings = LimitSettings()
    resources: ResourceSettings = ResourceSettings()
    journal: JournalSettings = JournalSettings()

    @property
    def socket_path(self) -> Path:
        """The socket to listen at."""
        return _expanded(self.socket) if self.socket else default_socket()

    @property
    def state_path(self) -> Path:
        """The folder of the journal and of everything else that survives the daemon."""
        return _expanded(self.state) if self.state else state_folder()

    @property
    def cache_path(self) -> Path:
        """The folder of files that can be recomputed, such as converted models."""
        return _expanded(self.cache) if self.cache else xdg("XDG_CACHE_HOME", ".cache") / "llmosd"

    @property
    def agent_folders(self) -> list[Path]:
        """The folders of agents: the one that ships with llmosd, then those of the settings."""
        return [shared("agents"), *(_expanded(folder) for folder in self.agents)]


def load(
    config: Path | None = None, flags: Mapping[str, Any] | None = None, environment: Mapping[str, str] = os.environ
) -> Settings:
    """Load and merge the settings. Raises `ConfigError`."""
    default = shared("config") / "llmosd.toml"
    user = config or xdg("XDG_CONFIG_HOME", ".config") / "llmosd" / "llmosd.toml"
    values = _read(default)
    if config is not None or user.is_file():
        _refuse_foreign(user)
        _merge(values, _read(user))
    for variable, key in ENVIRONMENT.items():
        if environment.get(variable):
            _check({key: environment[variable]}, f"environment variable {variable}", lenient=True)
            values[key] = environment[variable]
    values.update({key: value for key, value in (flags or {}).items() if value is not None})
    settings = _check(values, "flags", lenient=True)
    for name, spec in settings.models.items():
        if (path := spec.missing_path()) is not None and name == settings.model:
            raise ConfigError(f"model {name}: nothing at {path}; correct models.{name}.path in {user}", key="path")
    if settings.model not in settings.models:
        settings.models[settings.model] = _model_by_path(settings)
    _check_policies(settings, user)
    _check_text(settings)
    for folder in settings.agent_folders[1:]:
        if not folder.is_dir():
            raise ConfigError(f"agents: no folder {folder}; create it, or correct the setting", key="agents")
    return settings


def shared(name: str) -> Path:
    """A folder that ships with llmosd: inside the installed package, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "share" / name
    return installed if installed.is_dir() else package.parent / name


def _check_policies(settings: Settings, file: Path) -> None:
    """Raises `ConfigError` for the first policy that does not exist, or whose settings are not allowed."""
    specs = {"scheduling": ModelSpec()} | {f"models.{name}": spec for name, spec in settings.models.items()}
    for place, spec in specs.items():
        try:
            settings.scheduling.policy_of(spec)
        except InvalidPolicy as error:
            raise ConfigError(f"{file}: {place}: {error.message}", key=place) from None


def _check_text(settings: Settings) -> None:
    """Raises `ConfigError` for a path that is not UTF-8: neither the journal nor a client could name it."""
    paths = {"socket": settings.socket_path, "state": settings.state_path, "cache": settings.cache_path}
    for key, path in [*paths.items(), *(("agents", folder) for folder in settings.agent_folders)]:
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise ConfigError(f"{key}: the path {str(path)!r} is not UTF-8; choose another", key=key) from None


def _model_by_path(settings: Settings) -> ModelSpec:
    """The model at the path in `settings.model`. Raises `ConfigError` if there is none."""
    if not looks_local(settings.model):
        known = ", ".join(settings.models)
        raise ConfigError(
            f"model: no model {settings.model!r}; configured: {known}. Or give a path such as ./{settings.model}",
            key="model",
        )
    spec = ModelSpec(path=settings.model)
    if (path := spec.missing_path()) is not None:
        raise ConfigError(f"model: nothing at {path}; correct the path", key="model")
    return spec


def _refuse_foreign(file: Path) -> None:
    """Raises `ConfigError` if other users can change the settings: these say which code the daemon runs."""
    with contextlib.suppress(OSError):  # reported when it is read
        for finding in trust.findings(file):
            if finding.refused:
                raise ConfigError(f"settings: {finding.sentence} with --config", file=str(file))


def _read(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", file=str(path)) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}", file=str(path)) from None
    _check(values, str(path))
    return values


def _check(values: dict[str, Any], place: str, *, lenient: bool = False) -> Settings:
    """Convert `values` to settings. Raises `ConfigError`, which names `place`, the key and the allowed values."""
    # msgspec's messages do not say which entry of a table is wrong, so check the entries one by one.
    kinds: tuple[tuple[str, Any], ...] = (("models", ModelSpec), ("tools", ToolSpec))
    for table, kind in kinds:
        if isinstance(values.get(table), dict):
            for name, spec in values[table].items():
                _convert(spec, kind, place, f"{table}.{name}.", strict=True)
    for section, kind in SECTIONS.items():
        if isinstance(values.get(section), dict):
            _convert(values[section], kind, place, f"{section}.", strict=True)
    return _convert(values, Settings, place, "", strict=not lenient)


def _convert(values: Any, kind: type[T], place: str, prefix: str, *, strict: bool) -> T:
    try:
        return msgspec.convert(values, kind, strict=strict)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `$")
    except UnicodeEncodeError as error:
        raise ConfigError(f"{place}: {error.object!r} is not UTF-8 text", place=place) from None
    key = prefix + path.strip("`.")
    if unknown := re.match(r"Object contains unknown field `(.+)`", what):
        fields = kind.__struct_fields__
        hint = did_you_mean(similar(unknown[1], fields))
        key += unknown[1]
        what = f"there is no such key; {hint}Allowed: {', '.join(fields)}"
    elif "Invalid enum value" in what:
        what += f"; allowed: {kind.__annotations__[key.removeprefix(prefix)].removeprefix('Literal')}"
    raise ConfigError(f"{place}: {key.rstrip('.')}: {what}", place=place, key=key)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> None:
    """Override the settings in `base` with those in `over`. Models and sections are merged key by key."""
    models = over.pop("models", {})
    sections = {name: base.get(name, {}) | over.pop(name, {}) for name in SECTIONS}
    base.update(over, **sections)
    for name, spec in models.items():
        base["models"][name] = base["models"].get(name, {}) | spec


def _expanded(path: str) -> Path:
    return Path(os.path.expanduser(path))  # the method of `Path` fails if there is no such user
