"""SLURM's queue: which signal says that a job's time is nearly over, and having the job queued again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from lightning import Trainer
from lightning.fabric.plugins.environments import SLURMEnvironment


def requeue_signal(trainer: Trainer) -> signal.Signals | None:
    """SIGUSR1, or what the run's SLURM plug-in names; None outside of SLURM, and where requeueing is switched off."""
    environment = trainer._accelerator_connector.cluster_environment
    if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
        return environment.requeue_signal or signal.SIGUSR1
    return None


def requeue_job() -> None:
    """``scontrol requeue`` of this job, or of this task of an array; says what came of it on standard error."""
    array, job = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_JOB_ID", "")
    job = f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '')}" if array else job
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=10)
        failed = done.returncode and (done.stderr.strip() or f"exit code {done.returncode}")
    except (OSError, subprocess.TimeoutExpired) as error:
        failed = str(error)
    said = f"could not be queued again ({failed}): do so by hand" if failed else "is queued again"
    print(f"SLURM job {job} {said}", file=sys.stderr)
