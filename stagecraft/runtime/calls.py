"""The purpose of a call of Snakemake: run jobs, only plan them, or look. Light, as a Snakefile imports it: no torch, no NumPy."""

import atexit
from collections.abc import Callable
from pathlib import Path
from typing import Any


def before_jobs(workflow: Any, prepare: Callable[[bool], None]) -> None:
    """Call `prepare(dry_run)` before Snakemake plans the jobs of a run; never in a call that only looks (--lint, --summary).

    Snakemake parses the rules before it says what it will do with them and has no hook in between, so the method of its
    Workflow that runs jobs is wrapped. The log that Snakemake opens even for a look is removed.
    """
    execute = workflow.execute
    logs = workflow.logger_manager.get_logfile()

    def remove_logs() -> None:
        for file in logs:
            Path(file).unlink(missing_ok=True)

    def prepared(*, executor_plugin: Any, **settings: Any) -> Any:
        atexit.unregister(remove_logs)
        prepare(executor_plugin.common_settings.dryrun_exec)
        return execute(executor_plugin=executor_plugin, **settings)

    if workflow.is_main_process:
        atexit.register(remove_logs)
        workflow.execute = prepared
