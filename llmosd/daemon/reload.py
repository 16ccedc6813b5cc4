"""Reloads the settings of a running daemon: compares them, applies what can change now, and names the rest.

The daemon calls it for SIGHUP. Each setting changes through the subsystem that uses it. All settings are checked before
the first one changes, so wrong settings change nothing. It never reads a file itself.
"""

from __future__ import annotations

from typing import Any

import msgspec

from kernel.kernel import Kernel
from llmosd.daemon.logs import DaemonLog
from llmosd.daemon.settings import Settings

# The settings that change at once; the limits hold for new processes. A change of any other setting needs a restart.
LIVE = ("drain_seconds", "limits", "log_format", "log_level", "memory", "model", "models", "resources", "scheduling")


def apply_settings(running: Settings, wanted: Settings, kernel: Kernel, log: DaemonLog) -> tuple[Settings, list[str]]:
    """Apply `wanted`. Returns the settings that are in force now, and the keys that changed."""
    changed = {key.partition(".")[0] for key in differences(running, wanted)}
    taken = {name: getattr(wanted, name) for name in LIVE if name != "models"}
    if changed & {"log_level", "log_format"}:
        log.configure(wanted.log_level, wanted.log_format)
    if "limits" in changed:
        kernel.limits.set_limits(wanted.limits)
        kernel.lifecycle.admissions_changed()
    if "memory" in changed:
        kernel.memory.set_quotas(wanted.memory)
        kernel.shared.set_quotas(wanted.memory)
    if "scheduling" in changed:
        kernel.dispatcher.slow_step = wanted.scheduling.slow_step
        kernel.watchdog.set_burst(wanted.scheduling.burst)
    models = running.models
    if changed & {"model", "models", "scheduling", "resources"}:
        models = kernel.resources.set_models(wanted.models, wanted.model, wanted.scheduling, wanted.resources)
    kernel.program_watch.retry_now()  # a user who has corrected a program asks for it
    now = msgspec.structs.replace(running, **taken, models=models)
    return now, differences(running, now)


def differences(one: Settings, other: Settings) -> list[str]:
    """The keys whose values differ, such as `scheduling.quantum`, `models.qwen.slots` and `limits.process.tokens`."""
    before, after = _flat(msgspec.to_builtins(one), ""), _flat(msgspec.to_builtins(other), "")
    return sorted(key for key in before | after if before.get(key, _flat) != after.get(key, _flat))


def _flat(table: dict[str, Any], prefix: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, dict) and value:
            values |= _flat(value, f"{prefix}{name}.")
        else:
            values[f"{prefix}{name}"] = value
    return values
