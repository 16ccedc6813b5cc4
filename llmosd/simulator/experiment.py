"""An experiment: one workload under several policies, each over the same seeds.

Asked by the command and the benches. Every policy gets the same tasks, so that differences are those of the policies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from ipc.errors import InvalidWorkload
from kernel.policy.registry import PolicySettings, make_policy
from llmosd.simulator import generators, load, recording, traces
from llmosd.simulator.device import DeviceModel
from llmosd.simulator.generators import Shape
from llmosd.simulator.outcome import Run
from llmosd.simulator.report import Estimates, Report, Slo, estimates, report
from llmosd.simulator.simulation import Simulation
from llmosd.simulator.workload import WorkloadTask

GENERATORS = ("programs", "poisson", "bursty", "agents")
SHIPPED = Path(__file__).resolve().parents[2] / "tests" / "bench" / "traces"


class ExperimentPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What to simulate.

    `workload` is one of `GENERATORS`, "trace" for the traces of the checkout, or a file: a trace (.csv, .csv.gz) or a
    recording. `load` is None for the times as they are. One seed is enough for a workload without chance.
    """

    device: DeviceModel
    policies: Sequence[PolicySettings]
    workload: str = "programs"
    load: float | None = 0.9
    slots: int = 4
    lease: int = 64
    seeds: int = 5
    tasks: int = 200
    owners: int = 2
    scale: float = 1.0
    deadline: float | None = None  # seconds that each task has
    shape: Shape = Shape()
    slo: Slo = Slo()


class ExperimentResult(msgspec.Struct, frozen=True, kw_only=True):
    """`what` was run, in words; the reports of each policy by its kind, one a seed; and the runs of the first seed."""

    what: str
    reports: dict[str, list[Report]]
    runs: list[Run]

    @property
    def estimates(self) -> dict[str, Estimates]:
        """By policy."""
        return {kind: estimates(reports) for kind, reports in self.reports.items()}


def perform(plan: ExperimentPlan, *, timeline: bool = False) -> ExperimentResult:
    """Run `plan`; with `timeline` the first runs keep what plots need. Raises `InvalidWorkload`, `InvalidPolicy`."""
    if plan.seeds < 1:
        raise InvalidWorkload(f"{plan.seeds} seeds; one at least")
    makers = [make_policy(settings) for settings in plan.policies]  # errors in a policy are raised before any work
    kinds = [policy.kind for policy in makers]
    if len(set(kinds)) < len(kinds):
        raise InvalidWorkload(f"a policy is named twice: {', '.join(kinds)}")
    reports: dict[str, list[Report]] = {kind: [] for kind in kinds}
    runs: list[Run] = []
    what, tasks_of = workload(plan)
    seeds = plan.seeds if plan.workload in GENERATORS else 1
    for seed in range(seeds):
        tasks = tasks_of(seed)
        for kind, settings in zip(kinds, plan.policies, strict=True):
            kept = timeline and seed == 0
            policy = make_policy(settings)
            run = Simulation(tasks, plan.device, policy, plan.slots, lease=plan.lease, timeline=kept).run()
            reports[kind].append(report(run, plan.slo))
            if seed == 0:
                runs.append(run)
    return ExperimentResult(what=f"{what}, {seeds} seed{'s' * (seeds > 1)}", reports=reports, runs=runs)


def workload(plan: ExperimentPlan) -> tuple[str, Callable[[int], list[WorkloadTask]]]:
    """What the workload of `plan` is in words, and its tasks by seed."""
    if plan.workload in GENERATORS:
        return _generated(plan)
    tasks, what = _read(plan)
    if plan.load is not None:
        tasks, factor = load.stretched(tasks, plan.load, plan.device, plan.slots)
        what += f", time stretched {factor:.3g} times to a load of {plan.load:g}"
    tasks = _with_deadline(plan, tasks)
    return what, lambda seed: tasks


def _generated(plan: ExperimentPlan) -> tuple[str, Callable[[int], list[WorkloadTask]]]:
    shape = Shape(
        prompt=max(round(plan.shape.prompt * plan.scale), 1),
        tokens=max(round(plan.shape.tokens * plan.scale), 1),
        spread=plan.shape.spread,
    )
    if plan.owners < 1:
        raise InvalidWorkload(f"{plan.owners} owners; one at least")
    if plan.workload == "agents":
        what = f"{plan.tasks} agents in a closed loop"
        return what, lambda seed: _with_deadline(plan, generators.agents(seed, _count(plan), shape, owners=plan.owners))
    maker = {"programs": generators.programs, "poisson": generators.poisson, "bursty": generators.bursty}[plan.workload]
    share = 0.9 if plan.load is None else plan.load

    def tasks_of(seed: int) -> list[WorkloadTask]:
        tasks = maker(seed, _count(plan), share, plan.device, plan.slots, shape, plan.owners)
        return _with_deadline(plan, tasks)

    return f"{plan.tasks} tasks ({plan.workload}) at a load of {share:g}", tasks_of


def _count(plan: ExperimentPlan) -> int:
    if plan.tasks < 1:
        raise InvalidWorkload(f"{plan.tasks} tasks; one at least")
    return plan.tasks


def _read(plan: ExperimentPlan) -> tuple[list[WorkloadTask], str]:
    if plan.workload == "trace":
        files = sorted(SHIPPED.glob("*.csv.gz"))
        if not files:
            raise InvalidWorkload(
                f"no traces in {SHIPPED}: they come with a checkout; name a file instead: --workload FILE.csv"
            )
    else:
        files = [Path(plan.workload).expanduser()]
    if not files[0].is_file():
        known = ", ".join((*GENERATORS, "trace"))
        raise InvalidWorkload(f"no workload {plan.workload!r}, and no such file; there are: {known}, or a file")
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
