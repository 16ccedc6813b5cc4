"""The configuration of one model: its driver, where its files are, how many slots it has, and its defaults.

Written in the settings file, read by the resource manager. Data only.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta


class ModelSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One model. `path`: "embedded" (the bundled model), a folder, a GGUF file or a hub name.

    `slots`: sequences decoded together at most. `lease`: tokens that a sequence may make before the kernel has to renew
    its lease. `policy`, `quantum` and `weights` override those under `[scheduling]`. `max_tokens` and `temperature`
    apply to calls that set none. `options` are passed to the driver unchanged. The driver process ends after
    `keep_alive` seconds without a sequence. It is killed and replaced if it has not loaded the model after
    `load_timeout` seconds, or sends nothing for `step_timeout` seconds with work to do.
    """

    driver: Literal["transformers", "simulated"] = "transformers"
    path: str = ""
    slots: Annotated[int, Meta(ge=1, le=4096)] = 64
    lease: Annotated[int, Meta(ge=1)] = 64
    policy: str | None = None
    quantum: Annotated[int, Meta(ge=1)] | None = None
    weights: dict[str, float] = {}
    max_tokens: Annotated[int, Meta(ge=1)] = 1024
    temperature: Annotated[float, Meta(ge=0, le=100)] = 0.0
    keep_alive: Annotated[float, Meta(ge=0)] = 300.0
    load_timeout: Annotated[float, Meta(gt=0)] = 1800.0
    step_timeout: Annotated[float, Meta(gt=0)] = 120.0
    options: dict[str, Any] = {}

    def missing_path(self) -> Path | None:
        """The local path of the model if it does not exist, else None. A hub name is no local path."""
        if self.driver != "transformers" or not looks_local(self.path):
            return None
        path = Path(os.path.expanduser(self.path))
        return None if path.exists() else path


def looks_local(reference: str) -> bool:
    """Whether a model reference is a path rather than a name: it is absolute, relative by dots, or a GGUF file."""
    return reference.startswith(("/", "./", "../", "~")) or reference.endswith(".gguf")
