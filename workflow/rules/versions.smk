# Before the first job of a run, Snakemake learns what DVC and Git did since its last.

from snakemake.io import IOFile
from snakemake.persistence.file import FilePersistence

from stages import versions


def list_results():
    """The files that each stage makes."""
    patterns = {rule.name: [re.sub(r"{(\w+),[^}]*}", r"{\1}", file) for file in rule.output] for rule in workflow.rules}
    results = {
        name: list(dict.fromkeys(expand(files, block=name_blocks()))) for name, files in patterns.items() if files
    }
    # Two rules of one stage: the searches, and the list of them.
    return results | {"search_block": results["search_block"] + results.pop("collect_search")}


def settle_results(results):
    """Let Snakemake see what DVC or Git changed under it, as it looks at times and at its own notes only.

    Stages as dvc.lock has them are taken as they are; other files that Snakemake did not make, it makes again.
    """
    nested = {"DVC_STAGE", "STAGECRAFT_SETTLING"} & set(os.environ)
    if nested or not workflow.is_main_process or not versions.under_dvc():
        return
    notes = FilePersistence(nolock=True)
    foreign = versions.foreign(results, lambda file: getattr(notes.metadata(IOFile(file)), "endtime", None))
    if foreign:
        changed = check(versions.changed_stages)
        take_as_they_are(versions.complete(results) - changed)
        for stage in sorted(foreign & changed):
            make_again(stage, results[stage], notes)


def take_as_they_are(stages):
    """Note stages in Snakemake as made from the params, code and inputs of now, in order; contents stay."""
    if stages:
        print(f"As in dvc.lock: {', '.join(sorted(stages))}.", file=sys.stderr)
        rules = [*stages, *(["collect_search"] if "search_block" in stages else [])]
        targets = [name for name in rules if name != "search_block"]
        command = [sys.executable, "-m", "snakemake", "--touch", "--nolock", "--cores", "1"]
        command += ["--snakefile", workflow.main_snakefile, "--forcerun", *rules]
        command += ["--allowed-rules", *rules, "--", *targets]
        check(versions.run_quietly, command, {"STAGECRAFT_SETTLING": "1"})


def make_again(stage, files, notes):
    """Have Snakemake make a stage again, whatever it noted of earlier files; these stay until then."""
    print(f"Neither made by Snakemake nor as in dvc.lock, so made again: {stage}.", file=sys.stderr)
    for file in files:
        notes.cleanup_metadata(IOFile(file))
        os.utime(file, (1, 1), follow_symlinks=False)


RESULTS = list_results()
settle_results(RESULTS)
