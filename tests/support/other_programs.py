"""Programs of other projects that a test uses: installs one that is missing, or skips the test and prints the reason.

Used by system tests. Only Debian's packages, and only for root, as in a container.
"""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

GUARD = 120.0  # seconds; only an installation that hangs takes as long


def need(program: str) -> None:
    """Install `program`, whose package has the same name, if it is missing. Skips the test if that fails."""
    if shutil.which(program) is not None:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip(f"{program} is not installed")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "--yes", "--no-install-recommends", program]):
        try:
            done = subprocess.run(
                ["apt-get", "--quiet", *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                env=environment,
                timeout=GUARD,
                check=False,
            )
        except subprocess.TimeoutExpired:
            pytest.skip(f"{program} is not installed, and apt-get hangs")
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed, and apt-get cannot install it: {done.stderr.strip()[-500:]}")
