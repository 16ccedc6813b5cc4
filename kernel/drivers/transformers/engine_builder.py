"""Builds the engine that serves a loaded model: cache, allocator, call lifecycle and prefill budget.

`__main__` calls it once. It never starts the engine.
"""

from __future__ import annotations

from kernel.drivers.protocol import Load
from kernel.drivers.transformers.call_lifecycle import CallLifecycle
from kernel.drivers.transformers.engine import DriverConnection, Engine
from kernel.drivers.transformers.kv_allocator import KVAllocator
from kernel.drivers.transformers.model_builder import Model
from kernel.drivers.transformers.options import Options
from kernel.drivers.transformers.prefill_budget import PrefillBudget
from kernel.drivers.transformers.prefix import PrefixCache
from kernel.drivers.transformers.report import BundleReport
from kernel.drivers.transformers.sequence import EngineLimits
from kernel.drivers.transformers.tokenize_ahead import TokenizeAhead

DISK_RATIO = 4  # disk space for prefixes, as a multiple of the KV memory, unless the option `kv_disk` sets it
PREFILL_TOKENS = {"cpu": 256, "cuda": 2048}  # prompt tokens in a step without generations: enough to use the device


def engine(link: DriverConnection, model: Model, options: Options, message: Load) -> Engine:
    """An engine for `model`. The caller runs it."""
    disk_budget = DISK_RATIO * model.memory.budget if options.kv_disk is None else options.kv_disk
    cache = PrefixCache(model.memory, message.disk, disk_budget)
    allocator = KVAllocator(model.memory, options.kv_quota, cache)
    limits = EngineLimits(model.context, message.max_tokens)
    tokenizer = TokenizeAhead(model.tokenizer, link.inbox)
    link.prepare = tokenizer.prepare
    report = BundleReport(link)
    calls = CallLifecycle(link.inbox, report, model.tokenizer, allocator, limits, model.fingerprint, tokenizer)
    prefill_budget = PrefillBudget(min(PREFILL_TOKENS[model.device.type], model.max_rows // 2))
    return Engine(link, model.forward, calls, prefill_budget, model.max_rows)
