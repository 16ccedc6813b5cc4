"""The table of families by kinds of files: `python -m tests.support.model_table ['FAMILY;...'] ['KIND;...']` prints it.

`test_model_files` calls `cell` for each of its cases. Without names, the script runs every family as one file. It is
slow with many of both, and it never stops at a fault.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from kernel.drivers.transformers import batch_invariance
from tests.support.gguf_files import RANDOM_BLOCKS, NotWritable
from tests.support.model_families import FAMILIES, model_of
from tests.support.model_files import KINDS
from tests.support.model_matrix import TOKENS, verdicts

# The formats with large blocks need rows of that many numbers.
WIDE = {"hidden_size": 256, "intermediate_size": 256, "moe_intermediate_size": 256, "head_dim": 64}
ROWS = (16, 32, 64, 128, 256, 512)
LENGTHS = (128, 256, 384, 512)


@contextmanager
def quick_loads() -> Iterator[None]:
    """Loads skip the trials of safe counts and lengths, which have tests of their own. torch uses one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_invariance, "safe_row_counts", lambda shapes, pack: ROWS)
        patch.setattr(batch_invariance, "safe_activation_counts", lambda activation, size: ROWS)
        patch.setattr(batch_invariance, "safe_lengths", lambda geometry, queries: LENGTHS)
        yield
    torch.set_num_threads(threads)


def cell(family: str, kind: str, folder: Path, *, in_full: bool = True, tokens: int = TOKENS) -> list[str]:
    """The verdicts on two loads of `family` in a file of this `kind`, written below `folder`."""
    type_, changes = FAMILIES[family]
    model = model_of(type_, **_wide(type_, changes) if kind.removeprefix("GGUF ") in RANDOM_BLOCKS else changes)
    source = KINDS[kind](model, folder / "model")
    return verdicts(source, folder / "cache", model, in_full=in_full, tokens=tokens)


def _wide(type_: str, changes: dict[str, Any]) -> dict[str, Any]:
    from transformers import CONFIG_MAPPING

    default = CONFIG_MAPPING[type_]()
    return changes | {key: value for key, value in WIDE.items() if hasattr(default, key)}


def main() -> None:
    """Print a line for each pair of the families and kinds that the arguments name."""
    families = sys.argv[1].split(";") if len(sys.argv) > 1 else list(FAMILIES)
    kinds = sys.argv[2].split(";") if len(sys.argv) > 2 else ["one file"]
    with quick_loads():
        for family in families:
            for kind in kinds:
                with tempfile.TemporaryDirectory(prefix="llmosd-table-") as path:
                    try:
                        found = cell(family, kind, Path(path))
                    except NotWritable as error:
                        found = [f"no such file: {error}"]
                print(f"{family} | {kind} | {' | '.join(dict.fromkeys(found))}", flush=True)


if __name__ == "__main__":
    main()
