"""SIGTERM and SLURM: a run that must make room ends soon, at a place from which it can go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from itertools import pairwise
from typing import Any

from lightning import LightningModule, Trainer
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from rlhf_lightning import ranks
from rlhf_lightning.callbacks.checkpoint import RolloutCheckpoint
from rlhf_lightning.errors import ConfigError


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


_RECENT = 3
"""Rollouts whose time says how long the one that is on will take."""


class Preemption(Callback):
    """Ends a fit within ``grace`` seconds of a SIGTERM, with exit code 0 from the command line.

    Checkpoints are taken at the edges of rollouts (epochs), and what came after the last one is repeated on resume to
    the same numbers; so nothing is written in the middle of one. If the last rollouts say that this one can be finished
    and saved in time, it is. Otherwise the run stops at the next micro-batch's end, or once the rollout's responses are
    there. When the time is over, the process ends wherever it is: what is on disk is whole at any moment.

    The signal may reach any of the ranks: at those places they ask each other, and stop together. Lightning's own
    handler, whose collective would run wherever the signal finds the process, is put aside during the fit. So is its
    handler of the signal that SLURM is asked to send before a job's time is over (``--signal``, SIGUSR1): such a run
    ends in the same way, and rank 0 has SLURM queue the job again.

    Args:
        grace: Seconds. Systems that stop a process (SLURM, torchrun, Kubernetes) commonly kill it 30 s later.

    Raises:
        ConfigError: If the grace is not above 0.
    """

    def __init__(self, grace: float = 25.0) -> None:
        if not grace > 0:
            raise ConfigError(f"Preemption: grace must be above 0 seconds, got {grace}")
        self.grace = grace
        self._begin()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nobody has asked yet."""
        self._begin()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listens, where no rollout has been begun before."""
        self._listen(trainer)

    def on_rollout_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before a rollout is begun; the first one comes before anything else of training."""
        self._listen(trainer)
        self._begun.append(time.monotonic())
        self._stop_if_asked()

    def on_experience(self, trainer: Trainer, pl_module: LightningModule, experience: Any) -> None:
        """After its responses are there."""
        self._stop_if_asked()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After a micro-batch, unless the epoch ends with it."""
        if not trainer.is_last_batch:
            self._stop_if_asked()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """At an edge: the checkpoint is taken, whatever its turn, and Lightning stops; it would anyway at the last."""
        if trainer.current_epoch + 1 != trainer.max_epochs and self._ask()[0]:
            trainer._signal_connector.received_sigterm = True

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Says what is kept, and has SLURM queue the job again, if it was SLURM's own signal."""
        if isinstance(exception, SIGTERMException):
            self._say(trainer)
        self._ended.set()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The run has come to its end before its time was over."""
        self._ended.set()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """As at the fit's end."""
        self._ended.set()

    def _begin(self) -> None:
        self.asked: float | None = None
        self.requeue = self._listens = False
        self._begun: deque[float] = deque(maxlen=_RECENT + 1)
        self._called, self._ended = threading.Event(), threading.Event()

    def _listen(self, trainer: Trainer) -> None:
        """Takes the signals over from Lightning, which puts back what was there before it when the fit ends."""

        def note(number: int, frame: Any) -> None:
            if self.asked is None:
                self._note(time.monotonic(), requeue=number == requeue_at)
                if (launcher := trainer.strategy.launcher) is not None:
                    launcher.kill(signal.SIGTERM)  # the ranks that this process has started

        requeue_at = requeue_signal(trainer)
        if not self._listens and threading.current_thread() is threading.main_thread():
            if trainer.received_sigterm:
                self._note(time.monotonic())
            for number in {signal.SIGTERM, requeue_at or signal.SIGTERM}:
                signal.signal(number, note)
            threading.Thread(target=self._end_in_time, args=(trainer,), name="preemption", daemon=True).start()
        self._listens = True

    def _note(self, asked: float, requeue: bool = False) -> None:
        self.asked, self.requeue = asked, requeue
        self._called.set()

    def _end_in_time(self, trainer: Trainer) -> None:
        self._called.wait()
        if not self._ended.wait(max(0.0, self.grace - (time.monotonic() - (self.asked or 0.0)))):
            self._say(trainer)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)

    def _stop_if_asked(self) -> None:
        asked, since, remaining = self._ask()
        if asked and since + remaining > self.grace:
            raise SIGTERMException

    def _ask(self) -> tuple[bool, float, float]:
        """Whether any rank was asked to stop, for how long it has known, and how long this rollout will still take."""
        now = time.monotonic()
        since = 0.0 if self.asked is None else now - self.asked
        told = [float(self.asked is not None), float(self.requeue), since, self._remaining(now)]
        asked, requeue, since, remaining = ranks.largest(told)
        if asked and self.asked is None:
            self._note(now - since, bool(requeue))
        return bool(asked), since, remaining

    def _remaining(self, now: float) -> float:
        """Seconds to the next rollout's begin, the checkpoint in between, as the slowest of the last ones took."""
        begun = list(self._begun)
        taken = [later - earlier for earlier, later in pairwise(begun)]
        return max(0.0, max(taken) - (now - begun[-1])) if taken else float("inf")

    def _say(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            print(f"asked to stop: {_kept(trainer)}", file=sys.stderr)
            if self.requeue:
                requeue_job()


def _kept(trainer: Trainer) -> str:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    last = next((callback.last for callback in callbacks if isinstance(callback, RolloutCheckpoint)), None)
    if last is None or not last.exists():
        return "there is no checkpoint yet, so a resumed run begins again"
    done = last.resolve().name if last.is_symlink() else f"checkpoint {last.name}"
    return f"{done} in {last.parent} is kept; a resumed run repeats what came after it to the same numbers"
