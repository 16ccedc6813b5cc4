"""Environments of peers: other packages for the same work, each installed apart from ours.

Used by the benches to run the scripts beside this file. Environments live in the clone, under .run, and are made once.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = HERE.parents[2] / ".run" / "peers"


def run(script: str, *requirements: str) -> Any:
    """The JSON on the last line that `script` prints, run where `requirements` are installed.

    Raises `CalledProcessError`.
    """
    out = subprocess.run(command(script, *requirements), check=True, stdout=subprocess.PIPE, text=True, timeout=300)
    return json.loads(out.stdout.splitlines()[-1])


@contextmanager
def conversation(script: str, *requirements: str) -> Iterator[Callable[[Any], Any]]:
    """A function that hands `script` a line of JSON and returns the line of JSON that it prints.

    The script ends with its input. The function raises `RuntimeError` if the script ended before.
    """
    process = subprocess.Popen(
        command(script, *requirements), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def ask(question: Any) -> Any:
        try:
            process.stdin.write(json.dumps(question) + "\n")
            return json.loads(process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError) as error:
            raise RuntimeError(f"{script} ended") from error

    try:
        yield ask
    finally:
        process.kill()
        process.communicate()


def command(script: str, *requirements: str) -> list[Path]:
    """The command that runs `script`; makes the environment with `requirements` if there is none."""
    environment = ENVIRONMENTS / "+".join(requirements)
    python = environment / "bin" / "python"
    if not (environment / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True)
        (environment / "ready").touch()
    return [python, HERE / script]
