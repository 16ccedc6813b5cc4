"""`python -m tests.faults`: kill a daemon under load, again and again, and check that nothing was lost.

It runs trials of some kills each, one seed after another; `make faults` is the long form. If a trial fails, its folder
is left in place, and the command that repeats the trial is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.faults import checks, plan
from tests.faults.jobs import Violation
from tests.faults.trial import Trial


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="seed of the first trial; each further trial adds one")
    parser.add_argument("--kills", type=int, default=1000, help="kills of all trials together")
    parser.add_argument("--trial", type=int, default=50, metavar="KILLS", help="kills of one trial")
    parser.add_argument("--seconds", type=float, default=0.5, help="longest run of the daemon between two kills")
    parser.add_argument("--model", default="simulated", help="simulated, or smollm2: the embedded model")
    parser.add_argument("--points", action="store_true", help="kill once at each failpoint, instead of at random")
    parser.add_argument("--verbose", action="store_true", help="print each kill")
    return parser


def main() -> int:
    """Run the trials. Returns exit code 1 if a promise was broken."""
    options = parser().parse_args()
    began, left, seed, kills = time.monotonic(), options.kills, options.seed, Counter[str]()
    missed, tasks = Counter[str](), 0
    while left > 0:
        folder = Path(tempfile.mkdtemp(prefix=f"llmosd-faults-{seed}-"))
        count = min(left, options.trial)
        deaths = plan.every_point() if options.points else plan.draw(seed, count, options.seconds, folder)
        trial = Trial(folder, options.model, seed)
        since = time.monotonic()
        try:
            asyncio.run(trial.run(deaths))
        except Violation as error:
            print(f"seed {seed}: BROKEN: {error}\n  folder: {folder}")
            print(f"  repeat with: {_command(seed, count, options)}")
            return 1
        jobs = list(trial.load.jobs.values())
        seconds = time.monotonic() - since
        print(f"seed {seed}: {len(deaths)} kills in {seconds:.1f} s; {checks.summary(jobs)}", flush=True)
        if options.verbose:
            for death, took in trial.times:
                print(f"  {took:6.2f} s  {death}")
            print(f"  {dict(trial.reached)}; not reached: {dict(trial.missed)}", flush=True)
        shutil.rmtree(folder)
        kills, missed, tasks = kills + trial.reached, missed + trial.missed, tasks + len(jobs)
        left, seed = left - len(deaths) if not options.points else 0, seed + 1
    print(f"{kills.total()} kills in {time.monotonic() - began:.0f} s, {tasks} tasks, nothing lost")
    for name, number in sorted(kills.items()):
        print(f"  {number:5} {name}" + (f" ({missed[name]} not reached in time)" if missed[name] else ""))
    return 0


def _command(seed: int, count: int, options: argparse.Namespace) -> str:
    command = (
        f"python -m tests.faults --seed {seed} --kills {count} --seconds {options.seconds} --model {options.model}"
    )
    return command + " --trial " + str(options.trial) + (" --points" if options.points else "")


if __name__ == "__main__":
    sys.exit(main())
