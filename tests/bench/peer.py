"""Peers: other packages, each installed into an environment of its own, that do what we do beside us.

Used by the benches. Environments live in the clone, under .run, and are made once.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = HERE.parents[1] / ".run" / "peers"


def run(script: str, requirement: str) -> float:
    """The number that `script` prints, run where `requirement` is installed. Raises `CalledProcessError`."""
    environment = ENVIRONMENTS / requirement
    python = environment / "bin" / "python"
    if not (environment / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", requirement], check=True)
        (environment / "ready").touch()
    out = subprocess.run(
        [str(python), str(HERE / "peers" / script)], check=True, capture_output=True, text=True, timeout=300
    )
    return float(out.stdout.split()[-1])
