"""Runs that are asked to stop: when they do, what is kept, and that SLURM is asked to queue them again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException
from tests.faults.test_dead_ranks import assert_same, end, start, wait_for
from tests.faults.test_scoring_server_down import GRPOModule, InProcessSampler, PromptData, TinyLlama

from rlhf_lightning.callbacks import Preemption, RolloutCheckpoint
from rlhf_lightning.callbacks.preemption import requeue_job
from rlhf_lightning.callbacks.watchdog import Peer, this_process
from rlhf_lightning.data.tasks.arithmetic import ChainedArithmetic
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.scorers import VerifierScorer


class Ask(Callback):
    """Sends this process a SIGTERM in the first micro-batch of a rollout."""

    def __init__(self, rollout: int) -> None:
        self.rollout = rollout

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (pl_module.rollout_index, batch_idx) == (self.rollout, 0):
            os.kill(os.getpid(), signal.SIGTERM)


def fit(folder: Path, rollout: int, grace: float) -> tuple[int, list[str]]:
    """Asked in ``rollout``, of three: the rollouts that were finished, and the checkpoints there are."""
    module = GRPOModule(
        policy=TinyLlama(hidden=32, layers=2, heads=2),
        sampler=InProcessSampler(max_new_tokens=4),
        scorers=[VerifierScorer()],
        prompts_per_rollout=4,
        samples_per_prompt=2,
        updates_per_rollout=2,
        optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3),
    )
    trainer = Trainer(
        accelerator="cpu", max_epochs=3, reload_dataloaders_every_n_epochs=1, default_root_dir=folder,
        callbacks=[Preemption(grace), Ask(rollout), RolloutCheckpoint(folder)],
        enable_progress_bar=False, enable_model_summary=False, logger=False,
    )  # fmt: skip
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SIGTERMException):
        trainer.fit(module, datamodule=PromptData(task=ChainedArithmetic(held_out=4)))
    assert signal.getsignal(signal.SIGTERM) == before
    return module.rollout_index, sorted(path.name for path in folder.iterdir())


def test_a_rollout_that_fits_into_the_grace_is_finished_and_saved(tmp_path, capsys):
    finished, there = fit(tmp_path, rollout=1, grace=600.0)
    assert (finished, there) == (2, ["last.ckpt", "rollout-000001.ckpt", "rollout-000002.ckpt"])
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["rlhf"]["rollout_index"] == 2
    assert "checkpoint last.ckpt" in capsys.readouterr().err


def test_a_rollout_of_unknown_length_is_left(tmp_path, capsys):
    """The first one: nothing was saved, so nothing is lost by stopping."""
    assert fit(tmp_path, rollout=0, grace=600.0) == (0, [])
    assert "there is no checkpoint yet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("begun", "remaining"),
    [
        ([0.0], float("inf")),  # no rollout is finished
        ([0.0, 10.0, 14.0], 7.0),  # at 17: the slowest took 10 s, 3 are over
        ([0.0, 1.0], 0.0),  # longer than any before
    ],
)
def test_the_slowest_of_the_last_rollouts_says_how_long_one_takes(begun, remaining):
    asked = Preemption()
    asked._begun.extend(begun)
    assert asked._remaining(17.0) == remaining


def test_a_grace_that_cannot_be():
    with pytest.raises(ConfigError, match="grace must be above 0 seconds, got 0"):
        Preemption(0)


def test_a_process_is_gone_when_it_has_ended_though_nobody_has_waited_for_it():
    own = this_process()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    peer = Peer(1, own.host, child.pid, own.namespace)
    assert not own.is_gone() and not peer.is_gone()
    child.kill()
    deadline = time.monotonic() + 20
    while not peer.is_gone() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert peer.is_gone()  # a zombie
    child.wait()
    assert peer.is_gone()
    assert not Peer(1, "elsewhere", child.pid, own.namespace).is_gone()
    assert not Peer(1, own.host, child.pid, "of a container").is_gone()


@pytest.fixture
def scontrol(tmp_path, monkeypatch) -> Path:
    """A command of that name, which writes down what it is called with."""
    folder, calls = tmp_path / "bin", tmp_path / "calls"
    folder.mkdir()
    (folder / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    (folder / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return calls


def test_a_job_and_a_task_of_an_array_are_queued_again(scontrol, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    requeue_job()
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "40")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "7")
    requeue_job()
    assert scontrol.read_text() == "requeue 42\nrequeue 40_7\n"
    assert capsys.readouterr().err == "SLURM job 42 is queued again\nSLURM job 40_7 is queued again\n"
    monkeypatch.setenv("PATH", "/nowhere")
    requeue_job()
    assert "SLURM job 40_7 could not be queued again" in capsys.readouterr().err


SLOW = """
import sys, time
from rlhf_lightning.pipeline import Pipeline
explore = Pipeline.__call__
def slow(self, *args, **kwargs):
    if slow.calls:
        time.sleep(200)
    slow.calls += 1
    return explore(self, *args, **kwargs)
slow.calls = 0
Pipeline.__call__ = slow
from rlhf_lightning.cli import main
sys.exit(main())
"""
"""``rlhf``, with a second rollout that takes its time."""


@pytest.mark.slow
def test_the_grace_bounds_a_stop_in_the_middle_of_a_rollout(tmp_path):
    quick = "--trainer.callbacks+={class_path: Preemption, init_args: {grace: 2}}"
    processes = start(tmp_path, "run", 3, quick, world=1, program=["-c", SLOW])
    wait_for(tmp_path / "run/checkpoints/last.ckpt", processes)
    processes[0].send_signal(signal.SIGTERM)
    assert end(processes, 60) == [0]
    assert "checkpoint last.ckpt" in (tmp_path / "run-0.log").read_text()


@pytest.mark.slow
def test_a_stop_before_the_first_rollout(tmp_path):
    processes = start(tmp_path, "run", 3, world=1)
    deadline = time.monotonic() + 60
    while not (tmp_path / "run").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    processes[0].send_signal(signal.SIGTERM)
    assert end(processes, 60) == [0]
    assert "stopped. Go on from the last checkpoint with" in (tmp_path / "run-0.log").read_text()


@pytest.mark.slow
def test_slurms_signal_stops_the_run_and_the_same_command_goes_on(tmp_path, scontrol, monkeypatch):
    """Lightning would save in the signal's handler, in the middle of an update, and leave the run to be killed."""
    whole = start(tmp_path, "whole", 4, world=1)
    assert end(whole) == [0]
    slurm = {"NTASKS": "1", "JOB_ID": "42", "JOB_NAME": "rlhf", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    processes = start(tmp_path, "run", 4, "--ckpt_path", "auto", world=1)
    wait_for(tmp_path / "run/checkpoints/last.ckpt", processes)
    processes[0].send_signal(signal.SIGUSR1)
    assert end(processes, 60) == [0]
    assert scontrol.read_text() == "requeue 42\n"
    assert not list(tmp_path.rglob("hpc_ckpt*"))
    assert not (tmp_path / "run/checkpoints/rollout-000004.ckpt").exists()
    assert end(start(tmp_path, "run", 4, "--ckpt_path", "auto", world=1)) == [0]
    assert_same(tmp_path / "run", tmp_path / "whole")
