"""Mistakes in settings: each error names the source, the key and the allowed values."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipc.errors import ConfigError
from llmosd.daemon.settings import load
from tests.support.settings import config, settings

pytestmark = pytest.mark.usefixtures("home")


@pytest.mark.parametrize("variable", ["LLMOSD_LOG_LEVEL", "LLMOSD_DRAIN_SECONDS", "LLMOSD_PRELOAD"])
def test_a_variable_that_is_not_text_is_named(variable):
    with pytest.raises(ConfigError, match=rf"environment variable {variable}: '\\udcff' is not UTF-8"):
        load(environment={variable: "\udcff"})


@pytest.mark.parametrize("key", ["socket", "state", "cache", "agents"])
def test_a_path_that_is_not_text_is_refused(key):
    path = "/tmp/\udcff"
    with pytest.raises(ConfigError, match=rf"{key}: the path '/tmp/\\udcff' is not UTF-8"):
        load(flags={key: [path] if key == "agents" else path}, environment={})


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
        ("[scheduling]\nweights = { ann = 0 }", ["scheduling", "the weight of owner 'ann' is 0"]),
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
