"""The commands `simulate`, `calibrate` and `record`: their options, and what they print.

Called by the command line. What they need of the simulator and the kernel is imported when they run, so that no other
command pays for it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ipc.errors import InvalidCall
from llmosd.cli import show
from llmosd.client.blocking import Client

if TYPE_CHECKING:
    from llmosd.simulator.experiment import ExperimentPlan, ExperimentResult
    from llmosd.simulator.report import Estimates

POLICIES = ("fifo", "priority", "fair", "attained")  # that are compared where none is named
POLL = 0.25  # seconds between two looks at what has ended

ROWS = {
    "first token, mean (s)": "ttft.mean",
    "first token, p50 (s)": "ttft.p50",
    "first token, p95 (s)": "ttft.p95",
    "first token, p99 (s)": "ttft.p99",
    "between tokens, mean (s)": "tpot.mean",
    "between tokens, p99 (s)": "tpot.p99",
    "call, mean (s)": "call.mean",
    "call, p50 (s)": "call.p50",
    "call, p95 (s)": "call.p95",
    "call, p99 (s)": "call.p99",
    "task, mean (s)": "task.mean",
    "task, p50 (s)": "task.p50",
    "task, p95 (s)": "task.p95",
    "task, p99 (s)": "task.p99",
    "task per token, mean (s)": "task_per_token.mean",
    "task per token, p99 (s)": "task_per_token.p99",
    "goodput (calls/s)": "goodput",
    "within objective": "within",
    "tokens/s": "tokens_per_second",
    "Jain index of owners": "jain",
    "service gap (tokens)": "gap",
    "preemptions": "preemptions",
    "swaps": "swaps",
    "calls given up": "shed",
    "missed deadlines": "misses",
    "busy": "busy",
}


def add_commands(add: Callable[..., argparse.ArgumentParser], common: argparse.ArgumentParser) -> None:
    """Add them to the command line; `common` holds what every command takes that speaks to the daemon."""
    command = add("simulate", help="simulate what policies do to a workload; needs no daemon")
    command.add_argument(
        "--policy", metavar="KIND", action="append", help="may be repeated; by default a choice of them"
    )
    command.add_argument(
        "--workload",
        metavar="WORKLOAD",
        default="programs",
        help="programs, poisson, bursty, agents, trace, or a file: a trace (.csv, .csv.gz) or a recording",
    )
    command.add_argument("--load", type=float, metavar="X", help="share of what the device can do; 0.9 if made up")
    command.add_argument("--tasks", type=int, metavar="N", default=200, help="how many are made up")
    command.add_argument("--owners", type=int, metavar="N", default=2, help="among whom these are divided")
    command.add_argument("--scale", type=float, metavar="X", default=1.0, help="multiplies token counts")
    command.add_argument("--slots", type=int, metavar="N", default=4, help="of the model; 4 by default")
    command.add_argument("--seeds", type=int, metavar="N", default=5, help="runs with other chance")
    command.add_argument("--device", metavar="FILE", help="its costs, as `llmos calibrate` writes them")
    command.add_argument("--quantum", type=int, metavar="N", help="tokens, for policies that have one")
    command.add_argument("--aging", type=float, metavar="X", help="priorities a second, for strict priority")
    command.add_argument("--deadline", type=float, metavar="S", help="seconds that each task has")
    command.add_argument("--ttft", type=float, metavar="S", default=2.0, help="objective: seconds to the first token")
    command.add_argument("--tpot", type=float, metavar="S", default=0.2, help="objective: seconds between tokens")
    command.add_argument("--plot", metavar="FOLDER", help="draw PNG and SVG files into it")
    command.add_argument("--example", choices=["textbook"], help="cases to work out by hand, beside the formulas")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(command=simulate, alone=True)

    command = add("calibrate", parents=[common], help="measure the daemon's model and write its costs to a device file")
    command.add_argument("file", metavar="FILE", help="to be written, TOML")
    command.add_argument("--model", metavar="NAME", help="the default one unless named")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(command=calibrate)

    command = add("record", parents=[common], help="write down what calls the daemon's models get, to simulate them")
    command.add_argument("file", metavar="FILE", help="to be written, JSON")
    command.add_argument("--seconds", type=float, metavar="N", help="for so long; by default until interrupted")
    command.add_argument("--last", action="store_true", help="also those that ended before, as far as remembered")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(command=record)


# ---- simulate


def simulate(options: argparse.Namespace) -> int:
    if options.plot is not None:
        from llmosd.simulator.plots.save import require

        require(Path(options.plot).expanduser())
    if options.example == "textbook":
        return _textbook(options)
    from llmosd.simulator.experiment import perform

    plan = _plan(options)
    found = perform(plan, timeline=options.plot is not None)
    files = _draw(options.plot, found)
    if options.json:
        figures = {kind: _figures(estimates) for kind, estimates in found.estimates.items()}
        device = plan.device.name
        show.value(
            {"what": found.what, "device": device, "slots": plan.slots, "policies": figures, "files": files}, True
        )
        return 0
    print(f"{found.what}; {plan.slots} slots of {plan.device.name}; means with 95% intervals over seeds\n")
    _print_estimates(found.estimates)
    for file in files:
        print(file)
    return 0


def _plan(options: argparse.Namespace) -> ExperimentPlan:
    from kernel.policy.registry import PolicySettings
    from llmosd.simulator.device import find
    from llmosd.simulator.experiment import GENERATORS, ExperimentPlan
    from llmosd.simulator.report import Slo

    given: dict[str, Any] = {name: getattr(options, name) for name in ("quantum", "aging")}
    settings = {name: value for name, value in given.items() if value is not None}
    kinds = [kind for named in options.policy or POLICIES for kind in named.split(",")]
    device = find(options.device)
    made_up = options.workload in GENERATORS
    return ExperimentPlan(
        device=device,
        policies=[PolicySettings(kind=kind, **settings) for kind in kinds],
        workload=options.workload,
        load=0.9 if options.load is None and (made_up or options.workload == "trace") else options.load,
        slots=options.slots,
        seeds=options.seeds,
        tasks=options.tasks,
        owners=options.owners,
        scale=options.scale,
        deadline=options.deadline,
        slo=Slo(ttft=options.ttft, tpot=options.tpot),
    )


def _draw(folder: str | None, found: ExperimentResult) -> list[str]:
    if folder is None:
        return []
    from llmosd.simulator.plots.save import draw

    return [str(path) for path in draw(Path(folder).expanduser(), found.runs, found.estimates)]


def _print_estimates(found: dict[str, Estimates]) -> None:
    """One row a figure, one column a policy."""
    rows = [
        (title, *(str(estimates.get(name, "")) for estimates in found.values()))
        for title, name in ROWS.items()
        if any(name in estimates and (estimates[name].mean or name != "swaps") for estimates in found.values())
    ]
    show.table(("FIGURE", *(kind.upper() for kind in found)), rows)


def _figures(estimates: Estimates) -> dict[str, Any]:
    return {name: {"mean": one.mean, "low": one.low, "high": one.high} for name, one in estimates.items()}


def _textbook(options: argparse.Namespace) -> int:
    from llmosd.simulator.textbook import textbook

    found = textbook()
    files: list[str] = []
    if options.plot is not None:
        from llmosd.simulator.plots.save import draw_run

        files = [str(path) for path in draw_run(Path(options.plot).expanduser(), found.run)]
    total = sum(found.slices.values())
    if options.json:
        answer = {"order": found.order, "slices": found.slices, "total_slices": total, "ms": found.milliseconds}
        show.value(answer | {"formulas": found.formulas, "files": files}, True)
        return 0
    print("Five processes of priority 1 to 5 under strict priority, slices of 100 ms; priority p needs p slices.\n")
    calls = sorted(found.run.calls, key=lambda call: call.end)
    rows = [
        (name, call.priority, found.slices[name], round(1000 * (call.started or 0.0)), round(1000 * call.end))
        for name, call in zip(found.order, calls, strict=True)
    ]
    show.table(("PROCESS", "PRIORITY", "SLICES", "START (ms)", "END (ms)"), rows)
    print(f"\norder {', '.join(found.order)}; {total} slices, {found.milliseconds} ms in all\n")
    lines = [
        (one.name, one.formula, *(_number(value) for value in (one.analytic, one.simulated, one.measured)), one.unit)
        for one in found.formulas
    ]
    show.table(("CASE", "FORMULA", "ANALYTIC", "SIMULATED", "MEASURED", "UNIT"), lines)
    for file in files:
        print(file)
    return 0


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


# ---- record


def record(client: Client, options: argparse.Namespace) -> int:
    from llmosd.simulator import recording
    from llmosd.simulator.recorder import Recorder

    if options.seconds is not None and not options.seconds >= 0:
        raise InvalidCall(f"--seconds {options.seconds:g}; it is 0 or more")
    path = Path(options.file).expanduser()
    recorder = Recorder(client, past=options.last)
    recording.write(recorder.recording, path)  # that it can be written is known before anything is recorded
    end = None if options.seconds is None else time.monotonic() + options.seconds
    print("recording; interrupt to stop" if end is None else "recording", file=sys.stderr)
    try:
        while end is None or (left := end - time.monotonic()) > 0:
            time.sleep(POLL if end is None else min(POLL, left))
            recorder.poll()
    except KeyboardInterrupt:
        pass
    recorder.poll()
    recording.write(recorder.recording, path)
    calls, lost = len(recorder.recording.calls), recorder.recording.lost
    if lost:
        print(f"llmos: {lost} calls ended unseen: the daemon remembers too few", file=sys.stderr)
    show.value({"calls": calls, "lost": lost} if options.json else f"{calls} calls", options.json)
    return 0


# ---- calibrate


def calibrate(client: Client, options: argparse.Namespace) -> int:
    from llmosd.simulator import device
    from llmosd.simulator.calibration import measure

    path = Path(options.file).expanduser()
    found = measure(client, options.model, lambda text: print(text, file=sys.stderr))
    try:
        device.write(found, path)
    except OSError as error:
        raise InvalidCall(f"{path}: {error.strerror}; name a file that can be written") from None
    if options.json:
        show.value(found, True)
    else:
        print(path.read_text(), end="")
    return 0
