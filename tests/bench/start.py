"""From launch to use: the daemon's first connection, the first token of the embedded model, and one `llmos ping`.

The cache is warm: the model was converted before. Run by `make bench`. The floors are the interpreter and the imports
alone.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from llmosd import Client, NoDaemon, Token

ROUNDS = 5
IMPORTS = "import torch; from transformers import PreTrainedTokenizerFast"
SCRIPTS = Path(sys.executable).parent


def one_start() -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="llmosd-bench-") as name:
        socket = Path(name) / "llmosd.sock"
        start = time.perf_counter()
        daemon = subprocess.Popen([SCRIPTS / "llmosd", "--socket", socket, "--state", name], stderr=subprocess.DEVNULL)
        try:
            client = connected(socket)
            connect = time.perf_counter() - start
            task = client.submit("ask", {"question": "What is the capital of France?", "max_tokens": 4})
            next(event for event in task.events() if isinstance(event, Token))
            token = time.perf_counter() - start
            task.result()
            ping = timed([SCRIPTS / "llmos", "--socket", socket, "ping"])
            client.close()
        finally:
            daemon.terminate()
            daemon.wait()
        return {
            "daemon accepts a connection": connect,
            "first token of the embedded model": token,
            "`llmos ping`, whole command": ping,
            "floor: a bare interpreter": timed([sys.executable, "-c", "pass"]),
            "floor: the imports of the driver alone": timed([sys.executable, "-c", IMPORTS]),
        }


def connected(socket: Path) -> Client:
    while True:
        try:
            client = Client(socket)
            client.connect()
            return client
        except NoDaemon:
            time.sleep(0.002)


def timed(command: list[str | Path]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    one_start()
    rounds = [one_start() for _ in range(ROUNDS)]
    table = Table(title=f"Seconds, medians of {ROUNDS} starts, {os.cpu_count()} cores, warm cache")
    table.add_column("")
    table.add_column("seconds", justify="right")
    for name in rounds[0]:
        table.add_row(name, f"{statistics.median(row[name] for row in rounds):.3f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
