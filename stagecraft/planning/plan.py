"""The plan of a run: what every step takes, as a table and as JSON."""

from dataclasses import asdict, dataclass
from typing import Any

from stagecraft.config.sections import Everything
from stagecraft.networks.activations import activation_bytes
from stagecraft.networks.costs import count_network_macs, count_parameters
from stagecraft.networks.families import family_of, sites_of
from stagecraft.planning.gpu import Gpu
from stagecraft.planning.memory import estimate_memory
from stagecraft.planning.rates import Machine
from stagecraft.planning.setup import Setup, read_setup
from stagecraft.planning.steps import Work, count_jobs, count_work
from stagecraft.planning.student import Search
from stagecraft.search.selection import Budget

GIB = 2**30
MIB = 2**20
HOUR = 3600
MINUTE = 60
SIDE_BY_SIDE = "search_block"  # the rule of many jobs, each with one thread


@dataclass(frozen=True)
class Step:
    """A rule of the plan; `memory` in bytes is None where a job takes little."""

    rule: str
    jobs: int
    work: Work
    memory: int | None


@dataclass(frozen=True)
class Plan:
    """The work of a run, whatever the machine."""

    params: Everything
    teacher: dict[str, Any]
    student_macs: float
    disk: int
    steps: list[Step]

    @property
    def trained_here(self) -> bool:
        """Whether the teacher is."""
        return self.params.train_teacher.source == "train"

    @property
    def measure(self) -> tuple[str, float]:
        """The unit of MACs: the teacher's training, or the whole run where that was done elsewhere."""
        work = {step.rule: step.work.macs for step in self.steps}
        if self.trained_here:
            return "teacher's training", work["train_teacher"]
        return "the run", sum(work.values())

    def seconds(self, step: Step, machine: Machine) -> float:
        """Seconds of a step's jobs on a machine."""
        if step.rule != SIDE_BY_SIDE:
            return step.jobs * machine.start + machine.rate.seconds(step.work)
        at_once = max(1, min(step.jobs, machine.cores))
        return (step.jobs * machine.start + machine.single.seconds(step.work)) / at_once

    def total_seconds(self, machine: Machine) -> float:
        """Seconds of the whole run."""
        return sum(self.seconds(step, machine) for step in self.steps)


def make_plan(params: Everything) -> tuple[Plan, Setup]:
    """The plan of a run; ValueError when a config that it names does not fit (see `read_setup`)."""
    setup = read_setup(params)
    search = Search(setup)
    student_macs = search.student_macs()
    work = count_work(setup, student_macs, search)
    memory = estimate_memory(setup, count_student_parameters(setup), search)
    jobs = count_jobs(setup)
    steps = [Step(rule, count, work[rule], memory.get(rule)) for rule, count in jobs.items()]
    disk = setup.features.predicted_bytes() if params.architecture == "searched" else 0
    return Plan(params, describe_teacher(setup), student_macs, disk, steps), setup


def describe_teacher(setup: Setup) -> dict[str, Any]:
    """The teacher and its costs for one sample."""
    return {
        "shape": list(setup.shape),
        "images": setup.images.train,
        "macs": count_network_macs(setup.teacher),
        "params": count_parameters(setup.teacher),
        "activation_bytes": activation_bytes(setup.teacher, setup.shape),
        "triple_bytes": sum(setup.features.bytes_by_name().values()),
    }


def count_student_parameters(setup: Setup) -> int:
    """Parameters of the student: what the budget leaves, or a decoder of the teacher's size for every interval."""
    teacher = setup.teacher
    limit = Budget.of(setup.params.assemble).params
    blocks = [teacher.get_submodule(site.name) for site in sites_of(teacher) if site.per_range]
    decoder = sum(map(count_parameters, blocks)) + family_of(teacher).fixed_costs(teacher).head_params
    largest = count_parameters(teacher) + (setup.intervals - 1) * decoder
    return largest if limit is None else min(largest, int(limit * count_parameters(teacher)))


def plan_as_json(plan: Plan, machine: Machine, gpu: Gpu) -> dict[str, Any]:
    """All figures of a plan; bytes, seconds and MACs."""
    steps = {
        step.rule: {
            "jobs": step.jobs,
            "macs": step.work.macs,
            "memory_bytes": step.memory,
            "seconds": plan.seconds(step, machine),
            "seconds_gpu": gpu.seconds(step.work.macs),
        }
        for step in plan.steps
    }
    return {
        "teacher": plan.teacher,
        "student_macs": plan.student_macs,
        "features_bytes": plan.disk,
        "machine": machine.as_dict(),
        "gpu": asdict(gpu),
        "steps": steps,
        "seconds": plan.total_seconds(machine),
    }


# --- The table ---


def format_plan(plan: Plan, machine: Machine, gpu: Gpu) -> str:
    """The plan as text."""
    parts = [facts(plan, machine, gpu), table(plan, machine, gpu), notes(plan)]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def facts(plan: Plan, machine: Machine, gpu: Gpu) -> list[str]:
    """Teacher, student, disk and speeds, a line each."""
    teacher = plan.teacher
    shape = " x ".join(map(str, teacher["shape"]))
    limit = plan.params.cache_features.max_gib
    room = "" if plan.disk <= limit * GIB else f"; cache_features.max_gib {limit:g} refuses it"
    return [
        f"teacher   {shape}, {teacher['params']:,} parameters, {quantity(teacher['macs'])} MACs a pass, "
        f"{size(teacher['activation_bytes'])} of activations a sample in training",
        f"student   {plan.student_macs / teacher['macs']:.3f} of the teacher's MACs at most, by the budgets",
        f"features  {plan.disk / GIB:.3f} GiB on disk, {size(teacher['triple_bytes'])} a triple{room}",
        f"here      {machine.cores} cores, {speed(machine.rate.forward)} forward, {speed(machine.rate.training)} in training; "
        f"with one thread {speed(machine.single.forward)} and {speed(machine.single.training)}",
        f"GPU       {gpu.tflops:g} TFLOP/s, of which {gpu.utilisation:g} are used (--config tflops=... utilisation=...)",
    ]


def table(plan: Plan, machine: Machine, gpu: Gpu) -> list[str]:
    """A line for each rule, and their sum."""
    name, whole = plan.measure
    rows = [["rule", "jobs", "memory, GiB", "MACs", f"of {name}", "time here", "on the GPU"]]
    rows += [row_of(plan, step, whole, machine, gpu) for step in plan.steps]
    macs = sum(step.work.macs for step in plan.steps)
    jobs = sum(step.jobs for step in plan.steps)
    last = [quantity(macs), f"{macs / whole:.3f}", duration(plan.total_seconds(machine)), duration(gpu.seconds(macs))]
    rows.append(["in all", str(jobs), "", *last])
    return align(rows)


def row_of(plan: Plan, step: Step, whole: float, machine: Machine, gpu: Gpu) -> list[str]:
    """The cells of a step."""
    macs = step.work.macs
    memory = "-" if step.memory is None else f"{step.memory / GIB:.1f}"
    costs = [quantity(macs), f"{macs / whole:.3f}"] if macs else ["-", "-"]
    on_gpu = duration(gpu.seconds(macs)) if macs else "-"
    return [step.rule, str(step.jobs), memory, *costs, duration(plan.seconds(step, machine)), on_gpu]


def notes(plan: Plan) -> list[str]:
    """The notes on what the figures leave out."""
    lines = []
    if plan.params.measure_latency.source == "measure":
        lines.append("measure_latency times layers here, minutes that are not in the table.")
    if plan.teacher["images"] == 0:
        lines.append("The images are not there yet: the steps whose work follows their number are without it.")
    return lines


def align(rows: list[list[str]]) -> list[str]:
    """Rows of cells as lines, the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]


def quantity(value: float) -> str:
    """A large number with three digits and its prefix, or with a power of ten: `16.1 M`, `2.3e+21`."""
    for power, prefix in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M")):
        if 10**power <= value < 1000 * 10**power:
            return f"{value / 10**power:.3g} {prefix}"
    return f"{value:.3g}"


def size(count: float) -> str:
    """Bytes in GiB, or in MiB where they are few."""
    return f"{count / GIB:.3g} GiB" if count >= GIB else f"{count / MIB:.3g} MiB"


def speed(seconds: float) -> str:
    """MACs in a second."""
    return f"{quantity(1 / seconds)} MACs/s"


def duration(seconds: float) -> str:
    """Seconds to three digits, in hours from an hour on, and in minutes from a minute on."""
    if seconds >= 1000 * HOUR:
        return f"{seconds / HOUR:,.0f} h"
    for size, unit in ((HOUR, "h"), (MINUTE, "min")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
