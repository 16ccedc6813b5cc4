"""The simulator beside the daemon, on one recorded workload: measured and simulated completion times.

Run by `make bench`, or by hand: `python tests/bench/simulated.py [MODEL...]`. A daemon is started and calibrated,
agents run in it and their calls are recorded; then the recording is simulated on the calibrated device. Aims: the mean
completion time within 10%, and at least 90% of pairs of calls ending in the same order. A short form of it is a test.

On a shared machine, speed changes by a quarter between calibration and run, and by as much between two rounds of the
calibration. So there are two figures: one with the device as calibrated, and one with all its costs scaled by how much
longer the steps of the run took than on that device. The second shows the simulator's own error.
"""

from __future__ import annotations

import operator
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
from rich.console import Console
from rich.table import Table

from ipc.errors import NoDaemon
from ipc.syscalls import SetPolicy
from kernel.policy.registry import PolicySettings, make_policy
from llmosd import Client
from llmosd.simulator import recording
from llmosd.simulator.calibration import measure, observation
from llmosd.simulator.device import DeviceModel
from llmosd.simulator.recorder import Recorder
from llmosd.simulator.recording import Recording
from llmosd.simulator.simulation import Simulation

SLOTS = 4
CONFIG = """
[models.simulated]
driver = "simulated"
slots = {slots}
lease = 64
options = {{ step_seconds = 0.01, sequence_seconds = 0.002, prompt_seconds = 0.0005 }}

[models.smollm2]
slots = {slots}
"""
AGENT = '''
"""An agent of several calls, with waits between them."""

from llmosd import Context, agent


@agent
async def worker(ctx: Context, calls: list[tuple[float, int, int]]) -> int:
    for number, (wait, words, tokens) in enumerate(calls):
        await ctx.sleep(wait)
        prompt = f"{ctx.pid} {number} " + "a story about the sea " * (words // 5)
        await ctx.generate(prompt, max_tokens=tokens, temperature=1.0, seed=number, emit=False)
    return len(calls)
'''


class Agreement(NamedTuple):
    """How far the simulator agrees with a run.

    Mean completion times of calls in seconds, and the share of pairs in the same `order`. `device`: as
    calibrated. `slower`: how many times longer the steps of the run took than on it. `corrected`: simulated with costs
    scaled by that.
    """

    device: DeviceModel
    calls: int
    measured: float
    simulated: float
    corrected: float
    slower: float
    order: float

    def off(self, simulated: float) -> str:
        """The relative error of a simulated mean."""
        return f"{simulated / self.measured - 1:+.1%}"


@contextmanager
def daemon(model: str, folder: Path) -> Iterator[Client]:
    """A daemon of its own with `SLOTS` slots."""
    config, socket = folder / "llmosd.toml", folder / "llmosd.sock"
    config.write_text(CONFIG.format(slots=SLOTS))
    (folder / "worker.py").write_text(AGENT)
    command = [Path(sys.executable).parent / "llmosd", "--socket", socket, "--state", folder / "state"]
    command += ["--config", config, "--model", model]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    try:
        with _connected(socket) as client:
            yield client
    finally:
        process.terminate()
        process.wait()


def _connected(socket: Path) -> Client:
    for _ in range(500):
        try:
            client = Client(socket)
            client.connect()
            return client
        except NoDaemon:
            time.sleep(0.02)
    raise SystemExit("the daemon did not start")


def agents(seed: int, count: int) -> list[tuple[float, list[tuple[float, int, int]]]]:
    """Agents: the start of each, and its calls as waits, words of the prompt, and tokens."""
    draw = random.Random(seed)
    now, found = 0.0, []
    for _ in range(count):
        now += draw.expovariate(4.0)
        shapes = range(draw.randint(1, 4))
        calls = [(draw.uniform(0.0, 0.2), draw.choice((10, 40, 100)), draw.randint(5, 60)) for _ in shapes]
        found.append((now, calls))
    return found


def record(client: Client, folder: Path, seed: int, count: int) -> tuple[Recording, int]:
    """Run the agents and record their calls; return the recording, and the number of steps."""
    recorder = Recorder(client)
    before = sum(row.steps for row in client.slots())
    program = str(folder / "worker.py")
    start, tasks = time.monotonic(), []
    for begins, calls in agents(seed, count):
        time.sleep(max(start + begins - time.monotonic(), 0.0))
        tasks.append(client.submit(program, {"calls": calls}))
    for task in tasks:
        task.result()
    recorder.poll()
    return recorder.recording, sum(row.steps for row in client.slots()) - before


def agreement(device: DeviceModel, recorded: Recording, steps: int, policy: PolicySettings) -> Agreement:
    """Simulate the recording, and compare."""
    slower = _slower(device, recorded, steps)
    tasks = recording.tasks(recorded)
    plain = Simulation(tasks, device, make_policy(policy), SLOTS).run()
    run = Simulation(tasks, scaled(device, slower), make_policy(policy), SLOTS).run()
    calls = [call for call in recorded.calls if not call.error and call.generated]
    keys = {key: number for number, key in enumerate(recording.ends(calls))}
    measured = {keys[key]: end for key, end in recording.ends(calls).items()}
    origins = recording.origins(recorded)
    simulated = {keys[(*origins[call.task], call.place)]: call.end for call in run.calls}
    return Agreement(
        device,
        len(calls),
        sum(call.ended - call.submitted for call in calls) / len(calls),
        sum(call.end - call.submitted for call in plain.calls) / len(plain.calls),
        sum(call.end - call.submitted for call in run.calls) / len(run.calls),
        slower,
        recording.order_agreement(measured, simulated),
    )


def _slower(device: DeviceModel, recorded: Recording, steps: int) -> float:
    """How many times longer than on `device` the steps of a run took in which the model was never idle."""
    whole = observation(recorded.calls, steps, device)
    costs = (device.step, device.sequence, device.prompt, device.context, device.reading)
    return whole.seconds / sum(map(operator.mul, whole.row, costs))


def scaled(device: DeviceModel, factor: float) -> DeviceModel:
    """`device` with all costs of a step times `factor`."""
    names = ("step", "sequence", "prompt", "context", "reading")
    return msgspec.structs.replace(device, **{name: getattr(device, name) * factor for name in names})


def compare(
    model: str, seed: int, count: int, kinds: tuple[str, ...], say: Callable[[str], None]
) -> dict[str, Agreement]:
    """Calibrate, record under each policy, simulate."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="llmosd-bench-") as name:
        folder = Path(name)
        with daemon(model, folder) as client:
            device = measure(client, model, say)
            for kind in kinds:
                client.request(SetPolicy(kind=kind))
                found[kind] = agreement(device, *record(client, folder, seed, count), PolicySettings(kind=kind))
    return found


def main() -> None:
    console = Console(width=130)
    table = Table(title=f"Recorded from the daemon, and simulated: {SLOTS} slots")
    columns = (
        "model",
        "policy",
        "calls",
        "daemon, mean (s)",
        "simulated",
        "off",
        "steps took",
        "corrected",
        "off",
        "pairs in order",
        "fit",
    )
    for column in columns:
        table.add_column(column, justify="right")
    for model in sys.argv[1:] or ("simulated", "smollm2"):
        for kind, one in compare(model, 1, 30, ("fifo", "priority", "attained", "fair"), console.print).items():
            fit = "" if one.device.error is None else f"{one.device.error:.1%}"
            plain = (f"{one.measured:.2f}", f"{one.simulated:.2f}", one.off(one.simulated))
            corrected = (f"{one.slower:.2f} x", f"{one.corrected:.2f}", one.off(one.corrected))
            numbers = (*plain, *corrected, f"{one.order:.1%}", fit)
            table.add_row(model, kind, str(one.calls), *numbers)
    console.print(table)


if __name__ == "__main__":
    main()
