"""The commands `simulate`, `calibrate` and `record`: their options and their output.

Called by the command line. Each command imports the simulator and the kernel only when it runs, so that no other
command pays for these imports. `simulate` never contacts a daemon.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ipc.errors import InvalidCall
from llmosd.cli import show
from llmosd.cli.options import Add, CommonOptions
from llmosd.cli.table import KEY, Layout, print_table
from llmosd.client.blocking import Client

if TYPE_CHECKING:
    from llmosd.simulator.experiment import ExperimentPlan, ExperimentResult
    from llmosd.simulator.report import Estimates

POLICIES = ("fifo", "priority", "fair", "attained")  # the default of --policy
POLL = 0.25  # seconds between two polls of the daemon's call log

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


def add_commands(add: Add, common: CommonOptions) -> None:
    """Add the commands to the command line."""
    command = add("simulate", parents=[common.wide], help="compare policies on a workload without a daemon")
    command.add_argument(
        "--policy",
        metavar="KIND",
        action="append",
        help="a policy, or several with commas (repeatable); default: fifo, priority, fair, attained",
    )
    command.add_argument(
        "--workload",
        metavar="WORKLOAD",
        default="programs",
        help="programs, poisson, bursty, agents, trace, or a file: a trace (.csv, .csv.gz) or a recording",
    )
    command.add_argument(
        "--load",
        type=float,
        metavar="X",
        help="load as a share of what the device can do; default: 0.9, or the arrival times of a file",
    )
    command.add_argument("--tasks", type=int, metavar="N", default=200, help="generated tasks; 200 by default")
    command.add_argument(
        "--owners", type=int, metavar="N", default=2, help="owners of the generated tasks; 2 by default"
    )
    command.add_argument("--scale", type=float, metavar="X", default=1.0, help="multiply token counts by X")
    command.add_argument("--slots", type=int, metavar="N", default=4, help="slots of the model; 4 by default")
    command.add_argument(
        "--seeds", type=int, metavar="N", default=5, help="generate the workload with N seeds; 5 by default"
    )
    command.add_argument(
        "--device",
        metavar="FILE",
        help="a file of `llmos calibrate`, or a device that ships: smollm2 (default) or simulated",
    )
    command.add_argument("--quantum", type=int, metavar="N", help="quantum in tokens, for policies that have one")
    command.add_argument(
        "--aging", type=float, metavar="X", help="priorities gained per second of waiting, for priority"
    )
    command.add_argument("--deadline", type=float, metavar="S", help="end each task S seconds after its arrival")
    command.add_argument(
        "--ttft", type=float, metavar="S", default=2.0, help="objective: most seconds to the first token; default: 2"
    )
    command.add_argument(
        "--tpot", type=float, metavar="S", default=0.2, help="objective: most seconds between tokens; default: 0.2"
    )
    command.add_argument("--plot", metavar="FOLDER", help="draw plots into FOLDER, as PNG and SVG")
    command.add_argument("--example", choices=["textbook"], help="compare small textbook cases with formulas")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(command=simulate, needs_no_daemon=True)

    command = add("calibrate", parents=[common.daemon], help="measure a model of the daemon and write a device file")
    command.add_argument("file", metavar="FILE", help="the TOML file to write")
    command.add_argument("--model", metavar="NAME", help="the model to measure; the default model if left out")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(command=calibrate)

    command = add("record", parents=[common.daemon], help="record the model calls of the daemon, to simulate them")
    command.add_argument("file", metavar="FILE", help="the JSON file to write")
    command.add_argument(
        "--seconds", type=float, metavar="N", help="record for N seconds; until interrupted if left out"
    )
    command.add_argument(
        "--last", action="store_true", help="also include earlier calls, as far as the daemon's log of calls goes back"
    )
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(command=record)


def _path(text: str) -> Path:
    return Path(os.path.expanduser(text))  # the method of `Path` fails if there is no such user


# ---- simulate


def simulate(options: argparse.Namespace) -> int:
    if options.plot is not None:
        from llmosd.simulator.plots.save import require

        require(_path(options.plot))
    if options.example == "textbook":
        return _textbook(options)
    from llmosd.simulator.experiment import perform

    plan = _plan(options)
    result = perform(plan, timeline=options.plot is not None)
    files = _draw(options.plot, result)
    if options.json:
        figures = {kind: _figures(estimates) for kind, estimates in result.estimates.items()}
        device = plan.device.name
        show.value(
            {"what": result.description, "device": device, "slots": plan.slots, "policies": figures, "files": files},
            True,
        )
        return 0
    print(f"{result.description}; {plan.slots} slots of {plan.device.name}; means with 95% intervals over seeds\n")
    _print_estimates(result.estimates, options.wide)
    for file in files:
        print(file)
    return 0


def _plan(options: argparse.Namespace) -> ExperimentPlan:
    from kernel.policy.registry import PolicySettings
    from llmosd.simulator.device import find
    from llmosd.simulator.experiment import DEFAULT_LOAD, GENERATORS, ExperimentPlan
    from llmosd.simulator.report import Slo

    given: dict[str, Any] = {name: getattr(options, name) for name in ("quantum", "aging")}
    settings = {name: value for name, value in given.items() if value is not None}
    kinds = [kind for named in options.policy or POLICIES for kind in named.split(",")]
    device = find(options.device)
    generated = options.workload in GENERATORS
    return ExperimentPlan(
        device=device,
        policies=[PolicySettings(kind=kind, **settings) for kind in kinds],
        workload=options.workload,
        load=DEFAULT_LOAD if options.load is None and (generated or options.workload == "trace") else options.load,
        slots=options.slots,
        seeds=options.seeds,
        tasks=options.tasks,
        owners=options.owners,
        scale=options.scale,
        deadline=options.deadline,
        slo=Slo(ttft=options.ttft, tpot=options.tpot),
    )


def _draw(folder: str | None, result: ExperimentResult) -> list[str]:
    if folder is None:
        return []
    from llmosd.simulator.plots.save import draw

    return [str(path) for path in draw(_path(folder), result.runs, result.estimates)]


def _print_estimates(by_policy: dict[str, Estimates], wide: bool) -> None:
    """Print a table with one row per figure and one column per policy."""
    rows = [
        (title, *(str(estimates.get(name, "")) for estimates in by_policy.values()))
        for title, name in ROWS.items()
        if any(name in estimates and (estimates[name].mean or name != "swaps") for estimates in by_policy.values())
    ]
    columns = {kind.upper(): Layout(1) for kind in by_policy}
    print_table({"FIGURE": Layout(2, 20)} | columns, rows, wide=wide)


def _figures(estimates: Estimates) -> dict[str, Any]:
    return {name: {"mean": one.mean, "low": one.low, "high": one.high} for name, one in estimates.items()}


def _textbook(options: argparse.Namespace) -> int:
    from llmosd.simulator.textbook import textbook

    book = textbook()
    files: list[str] = []
    if options.plot is not None:
        from llmosd.simulator.plots.save import draw_run

        files = [str(path) for path in draw_run(_path(options.plot), book.run)]
    total = sum(book.slices.values())
    if options.json:
        answer = {"order": book.order, "slices": book.slices, "total_slices": total, "ms": book.milliseconds}
        show.value(answer | {"formulas": book.formulas, "files": files}, True)
        return 0
    print("Five processes of priority 1 to 5 under strict priority, slices of 100 ms; priority p needs p slices.\n")
    calls = sorted(book.run.calls, key=lambda call: call.end)
    rows = [
        (name, call.priority, book.slices[name], round(1000 * (call.started or 0.0)), round(1000 * call.end))
        for name, call in zip(book.order, calls, strict=True)
    ]
    columns = ("PROCESS", "PRIORITY", "SLICES", "START (ms)", "END (ms)")
    print_table(dict.fromkeys(columns, Layout(KEY)), rows, wide=options.wide)
    print(f"\norder {', '.join(book.order)}; {total} slices, {book.milliseconds} ms in all\n")
    lines = [
        (one.name, one.formula, *(_number(value) for value in (one.analytic, one.simulated, one.measured)), one.unit)
        for one in book.formulas
    ]
    names = ("CASE", "FORMULA", "ANALYTIC", "SIMULATED", "MEASURED", "UNIT")
    print_table({name: Layout(KEY) if name == "CASE" else Layout(1) for name in names}, lines, wide=options.wide)
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
        raise InvalidCall(f"--seconds {options.seconds:g}; give 0 or more")
    path = _path(options.file)
    recorder = Recorder(client, past=options.last)
    recording.write(recorder.recording, path)  # an unwritable file fails here, before the recording
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
        print(f"llmos: {lost} calls are missing: the daemon's log dropped them before we read them", file=sys.stderr)
    show.value({"calls": calls, "lost": lost} if options.json else f"{calls} calls", options.json)
    return 0


# ---- calibrate


def calibrate(client: Client, options: argparse.Namespace) -> int:
    from llmosd.simulator import device
    from llmosd.simulator.calibration import measure

    path = _path(options.file)
    measured = measure(client, options.model, lambda text: print(text, file=sys.stderr))
    try:
        device.write(measured, path)
    except OSError as error:
        raise InvalidCall(f"{path}: {error.strerror}; name a file that can be written") from None
    if options.json:
        show.value(measured, True)
    else:
        print(path.read_text(), end="")
    return 0
