"""An experiment: one workload under several policies, each with the same seeds.

Run by `llmos simulate` and the benches. Every policy gets the same tasks, so that all differences come from the
policies. It prints nothing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from ipc.errors import InvalidWorkload
from kernel.policy.registry import PolicySettings, make_policy
from llmosd.daemon.settings import shared
from llmosd.simulator import generators, load, recording, traces
from llmosd.simulator.device import DeviceModel
from llmosd.simulator.generators import Shape
from llmosd.simulator.outcome import Run
from llmosd.simulator.report import Estimates, Report, Slo, estimates, report
from llmosd.simulator.simulation import Simulation
from llmosd.simulator.workload import WorkloadTask

GENERATORS = ("programs", "poisson", "bursty", "agents")
DEFAULT_LOAD = 0.9
SHIPPED_TRACES = shared("config") / "traces"


class ExperimentPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters of an experiment.

    `workload` is one of `GENERATORS`, "trace" for the traces that ship with llmosd, or a file: a trace (.csv, .csv.gz)
    or a recording. With `load` None, calls arrive at the times in the file. Only generated workloads use more than one
    seed.
    """

    device: DeviceModel
    policies: Sequence[PolicySettings]
    workload: str = "programs"
    load: float | None = DEFAULT_LOAD
    slots: int = 4
    lease: int = 64
    seeds: int = 5
    tasks: int = 200
    owners: int = 2
    scale: float = 1.0
    deadline: float | None = None  # seconds after its arrival at which each task is ended
    shape: Shape = Shape()
    slo: Slo = Slo()


class ExperimentResult(msgspec.Struct, frozen=True, kw_only=True):
    """A description of the workload, the reports by kind of policy, one per seed, and the runs of the first seed."""

    description: str
    reports: dict[str, list[Report]]
    runs: list[Run]

    @property
    def estimates(self) -> dict[str, Estimates]:
        """The figures of each policy as means over seeds."""
        return {kind: estimates(reports) for kind, reports in self.reports.items()}


def perform(plan: ExperimentPlan, *, timeline: bool = False) -> ExperimentResult:
    """Run `plan`. With `timeline`, the runs of the first seed record the data of the plots.

    Raises `InvalidWorkload` and `InvalidPolicy`.
    """
    if plan.seeds < 1:
        raise InvalidWorkload(f"{plan.seeds} seeds; give at least one")
    kinds = [make_policy(settings).kind for settings in plan.policies]  # wrong settings fail here, before any work
    if len(set(kinds)) < len(kinds):
        raise InvalidWorkload(f"a policy is named twice: {', '.join(kinds)}; name each once")
    reports: dict[str, list[Report]] = {kind: [] for kind in kinds}
    runs: list[Run] = []
    description, tasks_of = workload(plan)
    seeds = plan.seeds if plan.workload in GENERATORS else 1
    for seed in range(seeds):
        tasks = tasks_of(seed)
        for kind, settings in zip(kinds, plan.policies, strict=True):
            record = timeline and seed == 0
            policy = make_policy(settings)
            run = Simulation(tasks, plan.device, policy, plan.slots, lease=plan.lease, timeline=record).run()
            reports[kind].append(report(run, plan.slo))
            if seed == 0:
                runs.append(run)
    return ExperimentResult(description=f"{description}, {seeds} seed{'s' * (seeds > 1)}", reports=reports, runs=runs)


def workload(plan: ExperimentPlan) -> tuple[str, Callable[[int], list[WorkloadTask]]]:
    """A description of the workload of `plan`, and a function that returns its tasks for a seed."""
    if plan.workload in GENERATORS:
        return _generated(plan)
    tasks, description = _read(plan)
    if plan.load is not None:
        tasks, factor = load.stretched(tasks, plan.load, plan.device, plan.slots)
        description += f", time stretched {factor:.3g} times to a load of {plan.load:g}"
    tasks = _with_deadline(plan, tasks)
    return description, lambda seed: tasks


def _generated(plan: ExperimentPlan) -> tuple[str, Callable[[int], list[WorkloadTask]]]:
    shape = Shape(
        prompt=max(round(plan.shape.prompt * plan.scale), 1),
        tokens=max(round(plan.shape.tokens * plan.scale), 1),
        spread=plan.shape.spread,
    )
    if plan.owners < 1:
        raise InvalidWorkload(f"{plan.owners} owners; give at least one")
    if plan.workload == "agents":
        description = f"{plan.tasks} agents in a closed loop"
        return description, lambda seed: _with_deadline(
            plan, generators.agents(seed, _task_count(plan), shape, owners=plan.owners)
        )
    generate = {"programs": generators.programs, "poisson": generators.poisson, "bursty": generators.bursty}[
        plan.workload
    ]
    share = DEFAULT_LOAD if plan.load is None else plan.load

    def tasks_of(seed: int) -> list[WorkloadTask]:
        tasks = generate(seed, _task_count(plan), share, plan.device, plan.slots, shape, plan.owners)
        return _with_deadline(plan, tasks)

    return f"{plan.tasks} tasks ({plan.workload}) at a load of {share:g}", tasks_of


def _task_count(plan: ExperimentPlan) -> int:
    if plan.tasks < 1:
        raise InvalidWorkload(f"{plan.tasks} tasks; give at least one")
    return plan.tasks


def _read(plan: ExperimentPlan) -> tuple[list[WorkloadTask], str]:
    if plan.workload == "trace":
        files = sorted(SHIPPED_TRACES.glob("*.csv.gz"))
        if not files:
            raise InvalidWorkload(
                f"no traces in {SHIPPED_TRACES}: install llmosd again, or name a file: --workload FILE.csv"
            )
    else:
        files = [Path(os.path.expanduser(plan.workload))]
    if not files[0].is_file():
        known = ", ".join((*GENERATORS, "trace"))
        raise InvalidWorkload(f"no workload {plan.workload!r}, and no such file; give one of {known}, or a file")
    if any(suffix in (".csv", ".gz") for suffix in files[0].suffixes):
        tasks = traces.merged([traces.read(file, plan.scale) for file in files])
        names = ", ".join(file.name for file in files)
        return tasks, f"{len(tasks)} calls of {names}, token counts times {plan.scale:g}"
    tasks = recording.tasks(recording.read(files[0]))
    return tasks, f"{sum(len(task.calls) for task in tasks)} calls recorded in {files[0].name}"


def _with_deadline(plan: ExperimentPlan, tasks: list[WorkloadTask]) -> list[WorkloadTask]:
    if plan.deadline is None:
        return tasks
    if not 0 < plan.deadline < math.inf:
        raise InvalidWorkload(f"a deadline of {plan.deadline:g} s is in the past; give seconds above 0")
    return [msgspec.structs.replace(task, deadline=plan.deadline) for task in tasks]
