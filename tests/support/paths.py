"""Folders of the source tree that tests read files from.

Used by tests, benches and trials, so that none depends on its own place in the tree.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
AGENTS = ROOT / "agents"  # the shipped agents
PROGRAMS = ROOT / "tests" / "programs"  # agents that only benches and trials run
