"""Agent programs on the embedded model, scheduled call by call and as programs, beside the simulator.

Run by `make bench`, or by hand: `python tests/bench/live.py [SEEDS]`. The daemon is calibrated first; then the same
programs arrive at the same times under fifo and under attained service, and in the simulator. At this scale a figure
is one sample: the bench of the simulator (`scheduling.py`) has intervals over many.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table
from simulated import SLOTS, daemon

from ipc.syscalls import SetPolicy
from kernel.policy.registry import PolicySettings, make_policy
from llmosd import AsyncClient
from llmosd.simulator.calibration import measure
from llmosd.simulator.generators import Shape, programs
from llmosd.simulator.simulation import Simulation
from llmosd.simulator.workload import WorkloadTask

MODEL, KINDS = "smollm2", ("fifo", "attained")
COUNT, CALLS, LOADS = 60, 4.0, (0.9, 1.1)
SHAPE = Shape(prompt=20, tokens=16)
CONSOLE = Console(width=120)


async def live(socket: Path, program: str, tasks: list[WorkloadTask]) -> list[float]:
    """Seconds from the arrival of each of `tasks` to its end, per token."""
    async with AsyncClient(socket) as client:
        start = time.monotonic()

        async def one(task: WorkloadTask) -> float:
            calls = [(call.wait, call.prompt, call.tokens) for call in task.calls]
            await asyncio.sleep(start + task.arrival - time.monotonic())
            await client.run(program, {"calls": calls})
            return (time.monotonic() - start - task.arrival) / task.tokens

        return list(await asyncio.gather(*map(one, tasks)))


def main() -> None:
    table = Table(
        title=f"{COUNT} agent programs (heavy-tailed chains of calls), {SLOTS} slots: seconds per token of a task"
    )
    for column in ("load", "seed", "", *KINDS, "fifo / attained", "p99: attained / fifo"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory(prefix="llmosd-bench-") as name:
        folder = Path(name)
        with daemon(MODEL, folder) as client:
            device = measure(client, MODEL, CONSOLE.print)
            for load in LOADS:
                for seed in range(int(sys.argv[1]) if len(sys.argv) > 1 else 1):
                    tasks = programs(seed, COUNT, load, device, SLOTS, SHAPE, mean=CALLS)
                    found: dict[str, dict[str, list[float]]] = {"live": {}, "simulated": {}}
                    for kind in KINDS:
                        client.request(SetPolicy(kind=kind))
                        CONSOLE.print(f"load {load:g}, seed {seed}: {kind}")
                        found["live"][kind] = asyncio.run(
                            live(folder / "llmosd.sock", str(folder / "worker.py"), tasks)
                        )
                        run = Simulation(tasks, device, make_policy(PolicySettings(kind=kind)), SLOTS).run()
                        found["simulated"][kind] = [
                            ((end or run.seconds) - task.arrival) / task.tokens for task, end, _ in run.tasks
                        ]
                    for where, by_kind in found.items():
                        means = [statistics.mean(by_kind[kind]) for kind in KINDS]
                        worst = [sorted(by_kind[kind])[len(tasks) * 99 // 100] for kind in KINDS]
                        figures = (*(f"{mean:.3f}" for mean in means), f"{means[0] / means[1]:.2f}")
                        table.add_row(f"{load:g}", str(seed), where, *figures, f"{worst[1] / worst[0]:.2f}")
    CONSOLE.print(table)


if __name__ == "__main__":
    main()
