"""Settings: flags override the environment, the environment the file, and the file the defaults, key by key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ipc.syscalls import Limits
from kernel.memory.quotas import MemoryQuotas
from kernel.models.settings import ResourceSettings, SchedulingSettings
from kernel.models.spec import ModelSpec
from kernel.processes.limits import LimitSettings
from kernel.programs.tool import ToolSpec
from llmosd.daemon.settings import SECTIONS, Settings, load
from tests.support.paths import ROOT
from tests.support.settings import config, settings

pytestmark = pytest.mark.usefixtures("home")


def test_the_shipped_defaults_hold_without_a_file(home: Path) -> None:
    got = settings()
    assert (got.model, got.preload, got.drain_seconds, got.log_level) == ("smollm2", True, 10.0, "info")
    assert set(got.models) == {"smollm2", "simulated"}
    assert got.state_path == home / "state" / "llmosd"
    assert got.agent_folders[0].name == "agents"


def test_file_environment_and_flags_go_over_each_other_in_that_order(home: Path) -> None:
    path = config(home, 'log_level = "warning"\ndrain_seconds = 1\nmodel = "simulated"\npreload = false\n')
    environment = {"LLMOSD_LOG_LEVEL": "error", "LLMOSD_DRAIN_SECONDS": "2.5", "LLMOSD_PRELOAD": "true"}
    got = load(flags={"log_level": "debug", "drain_seconds": None}, environment=environment)
    assert (got.log_level, got.drain_seconds, got.model, got.preload) == ("debug", 2.5, "simulated", True)
    assert load(path, environment={}).drain_seconds == 1


def test_an_empty_variable_is_as_none(home: Path) -> None:
    assert load(environment={"LLMOSD_LOG_LEVEL": ""}).log_level == "info"


def test_models_are_merged_key_by_key(home: Path) -> None:
    config(home, '[models.smollm2]\nslots = 3\n[models.mine]\ndriver = "simulated"\noptions = {step_seconds = 0.1}\n')
    models = settings().models
    assert (models["smollm2"].slots, models["smollm2"].path) == (3, "embedded")
    assert models["mine"].options == {"step_seconds": 0.1}
    assert models["simulated"].driver == "simulated"


def test_the_bounds_of_memory_are_merged_key_by_key_and_the_shipped_ones_are_the_defaults(home: Path) -> None:
    assert settings().memory == MemoryQuotas()
    config(home, "[memory]\nkeys = 3\n[tools.search]\nfunction = 'module:name'\n")
    assert settings().memory == MemoryQuotas(keys=3)
    assert settings().tools == {"search": ToolSpec(function="module:name")}


def test_scheduling_is_merged_key_by_key_and_the_shipped_ones_are_the_defaults(home: Path) -> None:
    assert settings().scheduling == SchedulingSettings()
    config(home, "[scheduling]\nburst = 0\n")
    assert settings().scheduling == SchedulingSettings(burst=0)


def test_resources_are_merged_key_by_key_and_the_shipped_ones_are_the_defaults(home: Path) -> None:
    assert settings().resources == ResourceSettings()
    assert settings().models["smollm2"] == ModelSpec(path="embedded")
    config(home, "[resources]\nmemory = 3\n[models.simulated]\nkeep_alive = inf\n")
    assert settings().resources == ResourceSettings(memory=3)
    assert settings().models["simulated"].keep_alive == float("inf")


def test_the_shipped_file_lists_every_setting() -> None:
    """A setting that is off by default is listed as a comment."""
    listed = {"": ""}
    section = ""
    for line in (ROOT / "config" / "llmosd.toml").read_text().splitlines():
        if found := re.match(r"(?:# )?\[(\w+)", line):
            section = found[1]
        listed[section] = listed.get(section, "") + line + "\n"
    structs = {"": Settings, "models": ModelSpec, "tools": ToolSpec} | SECTIONS
    del structs["limits"]
    expected = {section: set(struct.__struct_fields__) - structs.keys() for section, struct in structs.items()}
    missing = [
        f"{section}.{name}"
        for section, names in expected.items()
        for name in names - {"limits"}
        if not re.search(rf"^(# )?{name} = ", listed[section], re.MULTILINE)
    ]
    limits = listed["scheduling"] + listed["limits"]  # the line above their sections names them all
    missing += [name for name in Limits.__struct_fields__ if not re.search(rf"\b{name}\b", limits)]
    missing += [name for name in LimitSettings.__struct_fields__ if f"[limits.{name}" not in limits]
    assert missing == []


def test_a_home_sign_is_expanded(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(home))
    assert settings(socket="~/s.sock").socket_path == home / "s.sock"
