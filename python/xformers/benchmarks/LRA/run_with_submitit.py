"""run_tasks as a job of a Slurm cluster, by submitit: the options of run_tasks, and --partition, --timeout, --folder.

python -m xformers.benchmarks.LRA.run_with_submitit --attention nystrom --task listops --partition gpu"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from xformers.helpers.training import UserError, program

from . import run_tasks


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="run_with_submitit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--partition", help="of the cluster")
    parser.add_argument("--timeout", type=int, default=2800, help="minutes")
    parser.add_argument("--folder", type=Path, default=Path("lra/jobs"), help="of the jobs' logs")
    parser.add_argument("--local", action="store_true", help="as a process of this machine")
    options, others = parser.parse_known_args(arguments)
    run_tasks.parser().parse_args(others)  # what is wrong is said now, not in a queue
    try:
        import submitit  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise UserError(
            "submitit is not installed.  Fix: pip install submitit, or run_tasks on this machine"
        ) from error
    executor = submitit.AutoExecutor(folder=options.folder, cluster="local" if options.local else None)
    more = {} if options.partition is None else {"slurm_partition": options.partition}
    executor.update_parameters(name="lra", timeout_min=options.timeout, gpus_per_node=0 if options.local else 1, **more)
    job = executor.submit(run_tasks.main, others)
    print(f"job {job.job_id}, logs in {options.folder}")
    return 0


if __name__ == "__main__":
    program(main)
