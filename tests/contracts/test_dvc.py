"""dvc.yaml and the rules say the same: stages, commands, inputs, code files, outputs and params."""

import copy
import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from stagecraft.runtime.provenance import with_code_files

ROOT = Path(__file__).parents[2]
# A stage stands for the rule of its name, but searches, a rule with wildcards, need another that asks for all of them.
RULES = {"search_block": ("collect_search", "search_block")}
# Where the user's own files lie, which Snakemake finds through the params and DVC must be told of.
OWN = {"prepare_data": {"data/raw"}, "train_autoencoder": {"data/teacher"}, "train_teacher": {"data/teacher"}}
OWN |= {"encode_prompts": {"data/teacher"}, "measure_latency": {"data/latency"}, "publish": {"data/teacher"}}
# Rules that DVC knows nothing of: what comes before or after it, and what is only made when asked for.
OUTSIDE = ("plan", "record", "export")
# What a rule reads with some params and DVC, which knows one list for all, takes for read always.
SOMETIMES = {"cluster_timesteps": {"results/teacher"}}

Stages = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def stages() -> Stages:
    return yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def paths(entries: list[Any]) -> set[str]:
    """Paths of outs or metrics, which are texts or one-key mappings to options."""
    return {next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries}


def unmatched(files: set[str], listed: set[str]) -> set[str]:
    """Files that no listed path is or contains, and listed paths that no file is or is in."""

    def covers(path: str, file: str) -> bool:
        return file == path or file.startswith(f"{path}/")

    lost = {file for file in files if not any(covers(path, file) for path in listed)}
    return lost | {path for path in listed if not any(covers(path, file) for file in files)}


def joined(jobs: dict[str, Any]) -> dict[str, Any]:
    """The rules as stages have them: those that one stage stands for as one, without what one gives another."""
    found = {
        name: job for name, job in jobs.items() if name not in {part for parts in RULES.values() for part in parts}
    }
    for name, parts in RULES.items():
        if missing := {*parts} - jobs.keys():
            raise AssertionError(f"{name}: no rule {missing}")
        union = {
            kind: set().union(*(getattr(jobs[part], kind) for part in parts))
            for kind in ("inputs", "code", "outputs", "params")
        }
        union["inputs"] -= given_on(union["inputs"], union["outputs"])
        found[name] = dataclasses.replace(jobs[name], **union)
    return found


def given_on(inputs: set[str], outputs: set[str]) -> set[str]:
    """The inputs that are outputs, by name or by their pattern with a wildcard."""
    patterns = [re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(output))) for output in outputs]
    return {path for path in inputs if any(pattern.fullmatch(path) for pattern in patterns)}


def drift(rules: dict[str, Any], stages: Stages) -> list[str]:
    """What differs between the rules and the stages, one line each."""
    jobs = joined({name: rule for name, rule in rules.items() if rule.outputs and name not in OUTSIDE})
    found = [f"{name}: is a rule or a stage, not both" for name in sorted(jobs.keys() ^ stages.keys())]
    for name in sorted(jobs.keys() & stages.keys()):
        rule, stage = jobs[name], stages[name]
        extra = OWN.get(name, set()) | SOMETIMES.get(name, set())
        listed_code = {path for path in stage["deps"] if path.startswith(("stages/", "stagecraft/"))}
        outs = paths(stage["outs"]) | paths(stage.get("metrics", []))
        allowed = RULES.get(name, (name,))
        if stage["cmd"] != f"snakemake {allowed[0]} --allowed-rules {' '.join(allowed)}":
            found.append(f"{name}: cmd makes something else: {stage['cmd']}")
        found += [f"{name}: code {path} differs" for path in sorted(rule.code ^ listed_code)]
        inputs = {path for path in rule.inputs if not any(path.startswith(f"{own}/") for own in OWN.get(name, ()))}
        found += [
            f"{name}: input {path} differs"
            for path in sorted(unmatched(inputs, {*stage["deps"]} - listed_code - extra))
        ]
        found += [f"{name}: {path} is missing" for path in sorted(extra - {*stage["deps"]})]
        found += [f"{name}: output {path} differs" for path in sorted(unmatched(rule.outputs, outs))]
        found += [f"{name}: params {key} differs" for key in sorted(rule.params ^ set(stage["params"]))]
        # A kept output would be taken for the new one.
        found += [f"{name}: {entry} persists" for entry in stage["outs"] if "persist" in str(entry)]
    return found


def test_stages_and_rules_agree(rules: dict[str, Any], stages: Stages) -> None:
    assert drift(rules, stages) == []


def test_the_code_files_are_as_the_command_writes_them() -> None:
    text = (ROOT / "dvc.yaml").read_text()
    assert with_code_files(text) == text
    assert with_code_files(text.replace("      - stagecraft/runtime/files.py\n", "")) == text


def test_there_is_one_rule_file_per_stage(stages: Stages) -> None:
    files = {path.stem for path in (ROOT / "workflow" / "rules").glob("*.smk")}
    assert files - {"common", "versions", *OUTSIDE} == set(stages)


def test_metrics_are_left_to_git(stages: Stages) -> None:
    assert stages["evaluate"]["metrics"] == [{"results/metrics.json": {"cache": False}}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda stages: stages["retrain"]["outs"].remove("results/student"), "retrain: output results/student/"),
        (lambda stages: stages["retrain"]["deps"].remove("data/prepared"), "retrain: input data/prepared/"),
        (lambda stages: stages["retrain"]["deps"].append("data/other"), "retrain: input data/other"),
        (lambda stages: stages["cluster_timesteps"]["deps"].remove("results/teacher"), "results/teacher is missing"),
        (lambda stages: stages["train_autoencoder"]["deps"].remove("data/teacher"), "data/teacher is missing"),
        (
            lambda stages: stages["search_block"]["deps"].remove("results/features"),
            "search_block: input results/features",
        ),
        (lambda stages: stages["search_block"]["params"].remove("architecture"), "search_block: params architecture"),
        (
            lambda stages: stages["assemble"]["deps"].remove("stagecraft/runtime/files.py"),
            "assemble: code stagecraft/runtime/files.py",
        ),
        (lambda stages: stages["evaluate"]["params"].remove("sampling"), "evaluate: params sampling"),
        (lambda stages: stages.pop("report"), "report: is a rule or a stage"),
        (lambda stages: stages["report"].update(cmd="snakemake"), "report: cmd"),
        (lambda stages: stages["report"].update(outs=[{"results/report.html": {"persist": True}}]), "persists"),
    ],
)
def test_drift_is_found(rules: dict[str, Any], stages: Stages, change: Callable[[Stages], Any], message: str) -> None:
    changed = copy.deepcopy(stages)
    change(changed)
    assert any(message in line for line in drift(rules, changed)), drift(rules, changed)


@pytest.mark.parametrize(
    ("kind", "entry", "message"),
    [
        ("outputs", "results/search/notes.txt", None),
        ("outputs", "results/notes.txt", "search_block: output results/notes.txt"),
        ("inputs", "results/clusters.json", "search_block: input results/clusters.json"),
        ("code", "stagecraft/clustering/partition.py", "search_block: code stagecraft/clustering/partition.py"),
        ("params", "assemble", "search_block: params assemble"),
    ],
)
@pytest.mark.parametrize("name", ["search_block", "collect_search"])
def test_drift_of_a_rule_is_found(
    rules: dict[str, Any], stages: Stages, name: str, kind: str, entry: str, message: str | None
) -> None:
    rule = rules[name]
    changed = rules | {name: dataclasses.replace(rule, **{kind: getattr(rule, kind) | {entry}})}
    found = drift(changed, stages)
    assert any(message in line for line in found) if message else found == []
