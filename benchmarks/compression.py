"""The search against the simple ways to the same time or the same MACs: one command that makes the whole table.

python benchmarks/compression.py --preset digits --seeds 3 --budgets 0.65 0.5 0.35
  --methods search uniform random magnitude diff-pruning depth scratch fewer-steps fewer-steps-student feature-reuse

Every run is a process of its own with one thread. It resumes from its checkpoint and leaves <method>-<budget>-seed<k>.json in
--output; runs that are there are not repeated. After them summary.json, table.md and fid.svg are written: FID against time, MACs
and parameters.

All start from the same teacher, whose predictions are kept in --work for the runs of a seed, and are retrained for the preset's
steps, or for --steps, with the same batches, learning rate and average. All are scored by the same code, FID and KID:
`evaluate.samples` images, or --samples, from the seed of the run, against the training split. A seed stands for the whole of a
method: clustering, features, supernets, choice, retraining and samples. Runs of one seed share the noise that samples start from
and the batches of retraining, so methods are compared seed by seed: beside the mean and standard deviation of a method's FID the
table has those of its difference from that of `search`.

Budgets
-------
A budget is a share of what the teacher takes to sample an image with the preset's sampler: of its time, or with
`--budget-of macs` of its MACs (thop's). Both are weighted by the sampler's steps in each interval of timesteps. Time is measured,
one evaluation of a net in turn with one of the teacher, on one thread with `measure_latency.batch_size` images; a share is the
median of such ratios. One run at a time measures, the others go on with what else they do.

Every method has a knob that is turned until its net is within 3 % of the budget (matching.py): the share of the MACs that pruning
leaves, the predicted share of the time that a search's rule or `depth` is given, the share of the MACs for rules of one width.
`time_ratio` in a result is what was measured; `matched` is false where no setting came within 3 %, and the nearest was taken;
the table marks such a time with *. What a search chooses has at most the teacher's parameters; the table says how many.

Methods
-------
`search` is the preset. `scratch` is its architecture with random weights. `uniform`, `random` and `largest` are
chosen in its space without scores, in its residual stream or, run with --channels of their own, in the one that is best for
them, which the table names. `uniform` has supernets of its own, of widths in eighths, whatever the preset
searches; `random` takes sub-blocks that were drawn from the space alone, `random-scored` also those that the search has bred;
`random-1`, `random-2` ... are further draws, of which a seed's mean counts. `local-rule`, `local-score`, `output-score`,
`combined-score`, `joint-linear`, `joint-constant`, `joint-none` and `one-interval` exchange one part of the search. `native` is a
search for a student of one interval that is a plain UNet2DModel.

`magnitude`, `taylor`, `diff-pruning` and `pruned-random` remove channels of the teacher (baselines.py), with the preset's
`output_weight` as distillation. `depth` drops whole ResNet
layers and attentions by their effect on the teacher's output (depth.py), and is retrained as the search's student is. A method
with `-plain` after its name is retrained without distillation terms.

Nothing is trained for `fewer-steps`, the teacher by a sampler of fewer steps, and `feature-reuse`, the teacher with DeepCache
(feature_reuse.py): every N-th step is whole, those between compute one branch; of the N and branches at the budget the one counts
whose samples are nearest to the teacher's. `fewer-steps-student` and `feature-reuse-student` do so with the student that `search`
has retrained at the next larger of --budgets, or at --student-budget; the budget is that of both together, `student_budget` in
the result is the student's own. They run after the others, and not at a budget that has no larger one.

`teacher-longer` is the teacher trained on, by its own loss and with the learning rate and average of retraining, for the MACs
that search and retraining of the budget's student take; `teacher_steps` says how many steps that are. `teacher` and `held-out`
are what to compare with, at --budgets 1; held-out images are scored where there are enough of them for KID.

`error` is the mean square difference of a net's predictions from the teacher's after retraining: it has far less chance in it
than FID, and tells of nothing but the imitation.

Runs with an architecture of the search space say what the scores made of it, so that summary.json has Spearman's correlation of
each score with the FID after retraining, over the draws of one seed.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from compression_methods import (
    BUDGETS_OF,
    OF_STUDENT,
    PRUNED,
    Method,
    Options,
    next_larger,
    params_of,
    shares,
    written,
)
from compression_run import Run
from compression_table import correlations, draw, not_joined, summarise, table
from shared_inputs import ONE_THREAD, Shared, preset_file, work_folder, write

ROOT = Path(__file__).parents[1]
Job = tuple[int, float, str]  # seed, budget, method


def parser_of_arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", required=True, help="name in presets/, or a params file")
    parser.add_argument("--methods", nargs="+", default=["search", "scratch", "uniform", "random", "depth", *PRUNED])
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.5])
    parser.add_argument("--budget-of", choices=BUDGETS_OF, default="time", help="what budgets are shares of")
    parser.add_argument(
        "--channels",
        type=shares,
        nargs="+",
        help="search_block.channels of each budget, as 0.75, or as 0.75,0.5 for shares of the levels; else the preset's",
    )
    parser.add_argument("--steps", type=int, help="retrain.steps; else the preset's")
    parser.add_argument("--samples", type=int, help="evaluate.samples; else the preset's")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--student-budget", type=float, help="for the methods of a student; else the next larger budget"
    )
    parser.add_argument("--extractors", nargs="+", default=["classifier"])
    parser.add_argument("--teacher", type=Path, help="a diffusers folder to take the teacher from; else it is trained")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--one", nargs=3, metavar=("METHOD", "BUDGET", "SEED"), help="a single run; what --jobs starts")
    return parser


def problem_with(arguments: argparse.Namespace, preset: Path, output: Path) -> str | None:
    """What is wrong with the arguments, or with what --output holds already; None when nothing is."""
    from stagecraft.preflight.params import validate_params

    try:
        list(map(Method, arguments.methods))
    except ValueError as error:
        return f"--methods {error}"
    if arguments.channels and len(arguments.channels) != len(arguments.budgets):
        return f"--channels {arguments.channels}: give one for each of the {len(arguments.budgets)} budgets"
    for key in ("steps", "samples"):
        if getattr(arguments, key) is not None and getattr(arguments, key) < 1:
            return f"--{key} {getattr(arguments, key)}: give 1 or more"
    params = params_of(preset, Method("search"), arguments.budgets[0], 0, options_of(arguments))
    try:
        validate_params(params, str(preset))
    except ValueError as error:
        return str(error)
    return not_joined(output, params, arguments.methods, arguments.budgets, arguments.channels, arguments.budget_of)


def options_of(arguments: argparse.Namespace) -> Options:
    """The options of a comparison, as far as all budgets have them in common."""
    return Options(arguments.budget_of, None, arguments.steps, arguments.samples)


def options_at(arguments: argparse.Namespace, budget: float) -> Options:
    """The options of the runs at a budget."""
    channels = arguments.channels[arguments.budgets.index(budget)] if arguments.channels else None
    student = arguments.student_budget or next_larger(budget, arguments.budgets)
    return replace(options_of(arguments), channels=channels, student_budget=student)


def main() -> None:
    """Run what is missing, several at a time, then summarise."""
    parser = parser_of_arguments()
    arguments = parser.parse_args()
    preset = preset_file(arguments.preset)
    output = arguments.output or ROOT / "benchmarks" / "results" / f"compression-{preset.stem}"
    work = arguments.work or work_folder(preset)
    shared = Shared(preset, work / "shared", arguments.teacher)
    if arguments.one:
        method, budget, seed = arguments.one
        options = options_of(arguments)
        options = replace(options, student_budget=arguments.student_budget)
        options = replace(options, channels=arguments.channels[0] if arguments.channels else None)
        run = Run(preset, Method(method), float(budget), int(seed), shared, arguments.extractors, work, options)
        write(output / f"{method}-{budget}-seed{seed}.json", run.result())
        return
    if problem := problem_with(arguments, preset, output):
        parser.error(problem)
    output.mkdir(parents=True, exist_ok=True)
    shared.prepare()
    codes = run_all(arguments, preset, output, work)
    write_summary(output)
    sys.exit(max(codes, default=0))


def write_summary(output: Path) -> None:
    """Write summary.json, table.md and fid.svg of all results in a folder, and print the table."""
    runs = [json.loads(path.read_text()) for path in sorted(output.glob("*-seed*.json"))]
    summary = summarise(runs)
    write(output / "summary.json", {"table": summary, "correlations": correlations(runs)})
    draw(runs, output / "fid.svg")
    (output / "table.md").write_text(table(summary))
    print(table(summary))


def jobs_of(arguments: argparse.Namespace) -> list[list[Job]]:
    """The runs that are asked for: those that need no student, then those that need one and have one."""
    wanted = list(product(range(arguments.seeds), arguments.budgets, arguments.methods))
    of_student = [job for job in wanted if job[2] in OF_STUDENT]
    possible = [job for job in of_student if options_at(arguments, job[1]).student_budget is not None]
    return [[job for job in wanted if job[2] not in OF_STUDENT], possible]


def run_all(arguments: argparse.Namespace, preset: Path, output: Path, work: Path) -> list[int]:
    """Start every run that has no result yet; their exit codes."""

    def start(job: Job) -> int:
        seed, budget, method = job
        if (output / f"{method}-{budget}-seed{seed}.json").exists():
            return 0
        folders = ["--preset", str(preset), "--output", str(output), "--work", str(work)]
        command = [sys.executable, __file__, "--one", method, str(budget), str(seed), *folders]
        command += [*as_flags(options_at(arguments, budget)), "--extractors", *arguments.extractors]
        return subprocess.run(command, env=os.environ | ONE_THREAD, check=False).returncode

    with ThreadPoolExecutor(arguments.jobs) as pool:
        return [code for jobs in jobs_of(arguments) for code in list(pool.map(start, jobs))]


def as_flags(options: Options) -> list[str]:
    """The flags that give a single run its options."""
    values: dict[str, Any] = {
        "--budget-of": options.budget_of,
        "--channels": None if options.channels is None else written(options.channels),
        "--steps": options.steps,
        "--samples": options.samples,
        "--student-budget": options.student_budget,
    }
    return [text for flag, value in values.items() if value is not None for text in (flag, str(value))]


if __name__ == "__main__":
    main()
