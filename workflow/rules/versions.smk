# Before a run plans its jobs, Snakemake learns what DVC and Git did since its last.

from snakemake.io import IOFile
from snakemake.persistence.file import FilePersistence

from stagecraft.runtime import calls
from stagecraft.preflight import versions

# Kept open as long as this process lives.
alive = []


def list_results():
    """The files that each stage makes."""
    patterns = {rule.name: [re.sub(r"{(\w+),[^}]*}", r"{\1}", file) for file in rule.output] for rule in workflow.rules}
    results = {
        name: list(dict.fromkeys(expand(files, block=name_blocks()))) for name, files in patterns.items() if files
    }
    # Two rules of one stage: the searches, and the list of them.
    return results | {"search_block": results["search_block"] + results.pop("collect_search")}


def prepare_run(dry_run):
    """Clear the locks of killed runs and settle what DVC or Git changed; a dry run only says what would be settled."""
    check(lifeline.check_writable, Path(".snakemake"))
    if not (dry_run or PLANNING):
        console.stop_on_interrupt(jobs, logger)
        quieten()
        tell_of_other_work()
    if not (dry_run or NESTED):
        alive.append(check(lifeline.clear_dead_locks, Path(".snakemake")))
    if not {"DVC_STAGE", *versions.SETTLED} & set(os.environ) and versions.under_dvc():
        settle_results(dry_run)


def settle_results(dry_run):
    """Let Snakemake see what DVC or Git changed under it, as it looks at times and at its own notes only.

    Stages as dvc.lock has them are taken as they are; other files that Snakemake did not make, it makes again.
    """
    notes = FilePersistence(nolock=True)
    foreign = versions.foreign(RESULTS, lambda file: getattr(notes.metadata(IOFile(file)), "endtime", None))
    if not foreign:
        return
    changed = check(versions.changed_stages)
    kept, again = sorted(versions.complete(RESULTS) - changed), sorted(foreign & changed)
    if dry_run:
        kept, again = (", ".join(names) or "none" for names in (kept, again))
        print(f"A run would first take as in dvc.lock: {kept}; make again: {again}.", file=sys.stderr)
        return
    take_as_they_are(kept)
    for stage in again:
        make_again(stage, RESULTS[stage], notes)


def take_as_they_are(stages):
    """Note stages in Snakemake as made from the params, code and inputs of now, in order; contents stay."""
    if stages:
        print(f"As in dvc.lock: {', '.join(stages)}.", file=sys.stderr)
        rules = [*stages, *(["collect_search"] if "search_block" in stages else [])]
        targets = [name for name in rules if name != "search_block"]
        command = [sys.executable, "-m", "snakemake", "--touch", "--nolock", "--cores", "1"]
        command += ["--snakefile", workflow.main_snakefile, "--forcerun", *rules]
        command += ["--allowed-rules", *rules, "--", *targets]
        check(versions.run_quietly, command, versions.SETTLED)


def make_again(stage, files, notes):
    """Have Snakemake make a stage again, whatever it noted of earlier files; these stay until then."""
    print(f"Neither made by Snakemake nor as in dvc.lock, so made again: {stage}.", file=sys.stderr)
    for file in files:
        notes.cleanup_metadata(IOFile(file))
        os.utime(file, (1, 1), follow_symlinks=False)


RESULTS = list_results()
calls.before_jobs(workflow, prepare_run)
