"""Places in the source tree that tests read files from.

Used by tests, benches and trials, so that none depends on the folder that it lies in itself.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
AGENTS = ROOT / "agents"  # which are shipped
PROGRAMS = ROOT / "tests" / "programs"  # agents that only benches and trials run
