"""Settings: what goes over what, and that a mistake is told with its file, its key and what is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ipc.errors import ConfigError
from kernel.memory.bounds import MemoryBounds
from kernel.scheduling import Scheduling
from kernel.slots.model import ModelSpec
from kernel.slots.settings import ResourceSettings
from kernel.tools.tool import ToolSpec
from llmosd.settings import load


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, without a configuration."""
    for variable in ("CONFIG", "STATE", "CACHE"):
        monkeypatch.setenv(f"XDG_{variable}_HOME", str(tmp_path / variable.lower()))
    return tmp_path


def config(home: Path, text: str) -> Path:
    path = home / "config" / "llmosd" / "llmosd.toml"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return path


def settings(**flags: Any) -> Any:
    return load(flags=flags, environment={})


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
    assert settings().memory == MemoryBounds()
    config(home, "[memory]\nkeys = 3\n[tools.search]\nfunction = 'module:name'\n")
    assert settings().memory == MemoryBounds(keys=3)
    assert settings().tools == {"search": ToolSpec(function="module:name")}


def test_scheduling_is_merged_key_by_key_and_the_shipped_ones_are_the_defaults(home: Path) -> None:
    assert settings().scheduling == Scheduling()
    config(home, "[scheduling]\nburst = 0\n")
    assert settings().scheduling == Scheduling(burst=0)


def test_resources_are_merged_key_by_key_and_the_shipped_ones_are_the_defaults(home: Path) -> None:
    assert settings().resources == ResourceSettings()
    assert settings().models["smollm2"] == ModelSpec(path="embedded")
    config(home, "[resources]\nmemory = 3\n[models.simulated]\nkeep_alive = inf\n")
    assert settings().resources == ResourceSettings(memory=3)
    assert settings().models["simulated"].keep_alive == float("inf")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("log_levle = 'info'", ["log_levle", "did you mean log_level?", "drain_seconds"]),
        ("log_level = 'loud'", ["log_level", "loud", "debug", "warning"]),
        ("drain_seconds = -1", ["drain_seconds", ">= 0"]),
        ("drain_seconds = 'soon'", ["drain_seconds", "float"]),
        ("agents = 'folder'", ["agents", "array"]),
        ("agents = [1]", ["agents[0]", "str"]),
        ("[models.smollm2]\nslot = 3", ["models.smollm2", "slot", "did you mean slots?", "lease"]),
        ("[models.smollm2]\nslots = 0", ["models.smollm2.slots", ">= 1"]),
        ("[models.smollm2]\ndriver = 'magic'", ["models.smollm2.driver", "magic", "transformers", "simulated"]),
        ("[models]\nsmollm2 = 3", ["models.smollm2", "object"]),
        ("models = 3", ["models", "object"]),
        ("[memory]\nkeyes = 3", ["memory.keyes", "did you mean keys?", "region_bytes"]),
        ("[memory]\nkeys = -1", ["memory.keys", ">= 0"]),
        ("memory = 3", ["memory", "object"]),
        ("[scheduling]\nbursts = 3", ["scheduling.bursts", "did you mean burst?", "slow_step"]),
        ("[scheduling]\nslow_step = 0", ["scheduling.slow_step", "> 0"]),
        ("[scheduling]\nburst = -1", ["scheduling.burst", ">= 0"]),
        ("[scheduling]\naging = -1", ["scheduling.aging", ">= 0"]),
        ("[scheduling]\nquantum = 0", ["scheduling.quantum", ">= 1"]),
        ("scheduling = 3", ["scheduling", "object"]),
        ("[resources]\nmemory = -1", ["resources.memory", ">= 0"]),
        ("[resources]\ncollate = 0", ["resources.collate", "> 0"]),
        ("[resources]\ncolate = 1", ["resources.colate", "did you mean collate?", "leak_margin"]),
        ("[models.smollm2]\nkeep_alive = -1", ["models.smollm2.keep_alive", ">= 0"]),
        ("[models.smollm2]\nload_timeout = 0", ["models.smollm2.load_timeout", "> 0"]),
        ("[models.smollm2]\nstep_timeout = 'soon'", ["models.smollm2.step_timeout", "float"]),
        ("[tools.search]\nfunction = 'a.b'", ["tools.search.function", "regex"]),
        ("[tools.search]\nfunction = 'a:b'\nretry = 1", ["tools.search.retry", "did you mean retries?"]),
        ("tools = 3", ["tools", "object"]),
        ("[scheduling]\npolicy = 'lottery'", ["scheduling", "no policy 'lottery'", "fifo, round_robin, priority"]),
        ("[scheduling]\nweights = { ann = 0 }", ["scheduling", "a weight of zero, of owner 'ann'"]),
        ("[models.smollm2]\npolicy = 'lottery'", ["models.smollm2", "no policy 'lottery'"]),
        ("[models.smollm2]\nquantum = 0", ["models.smollm2.quantum", ">= 1"]),
        ("this is not toml", ["not TOML"]),
    ],
)
def test_a_mistake_in_the_file_is_told_with_the_file_the_key_and_what_is_allowed(
    home: Path, text: str, parts: list[str]
) -> None:
    path = config(home, text)
    with pytest.raises(ConfigError) as caught:
        settings()
    for part in [str(path), *parts]:
        assert part in caught.value.message


def test_a_mistake_in_the_environment_names_the_variable() -> None:
    for variable, value in (("LLMOSD_LOG_LEVEL", "loud"), ("LLMOSD_DRAIN_SECONDS", "soon"), ("LLMOSD_PRELOAD", "?")):
        with pytest.raises(ConfigError, match=variable):
            load(environment={variable: value})


def test_a_mistake_in_a_flag_says_so() -> None:
    with pytest.raises(ConfigError, match="flags: log_level"):
        settings(log_level="loud")


def test_a_named_file_that_is_missing_is_an_error_and_the_default_one_is_not(home: Path) -> None:
    with pytest.raises(ConfigError, match=r"other\.toml"):
        load(home / "other.toml", environment={})
    settings()


def test_the_path_of_the_default_model_must_exist(home: Path) -> None:
    path = config(home, '[models.smollm2]\npath = "/nowhere/model"\n[models.other]\npath = "/nowhere/too"\n')
    with pytest.raises(ConfigError) as caught:
        settings()
    for part in ("/nowhere/model", "models.smollm2.path", str(path)):
        assert part in caught.value.message
    assert settings(model="simulated").model == "simulated"


def test_the_model_may_be_a_path(home: Path) -> None:
    (home / "weights.gguf").write_text("")
    got = settings(model=str(home / "weights.gguf"))
    assert got.models[got.model].path == str(home / "weights.gguf")
    with pytest.raises(ConfigError, match="nothing at"):
        settings(model=str(home / "missing.gguf"))


def test_an_unknown_model_is_told_with_the_configured_ones() -> None:
    with pytest.raises(ConfigError, match=r"smolm2.*smollm2, simulated"):
        settings(model="smolm2")


def test_folders_of_agents_must_exist(home: Path) -> None:
    with pytest.raises(ConfigError, match="no folder"):
        settings(agents=[str(home / "missing")])
    assert settings(agents=[str(home)]).agent_folders[1:] == [home]


def test_a_home_sign_is_expanded(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(home))
    assert settings(socket="~/s.sock").socket_path == home / "s.sock"
