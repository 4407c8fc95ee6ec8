"""The program puts itself in its own place once, with the settings that a process must find at its start."""

import os
import platform
import subprocess
import sys

import pytest

from rlhf_lightning import process_settings
from rlhf_lightning.process_settings import HEAP, WAITING, missing_settings, threads_wake_quickly, user_sets_heap
from rlhf_lightning.start import restart_with

RESTARTS = """
import os
from rlhf_lightning.start import restart_with
print(os.getpid(), os.environ.get("PROBE"), flush=True)
restart_with({} if "PROBE" in os.environ else {"PROBE": "set"})
print("goes on")
"""

REUSES = """
import torch
from rlhf_lightning.models.cpu_memory import keep_freed_memory
assert keep_freed_memory()
reused, others = 0, []
for _ in range(20):
    freed = torch.empty(1 << 20)
    others.append(torch.empty(64))
    place = freed.data_ptr()
    del freed
    again = torch.empty(1 << 20)
    others += [again, torch.empty(64)]
    reused += again.data_ptr() == place
print(reused)
"""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's own settings")


def run(program, **environment):
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={k: v for k, v in os.environ.items() if k not in HEAP and not k.startswith("MALLOC_")} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_once_and_in_the_same_process():
    before, after, last = run(RESTARTS)
    number, probe = before.split()
    assert (probe, after, last) == ("None", f"{number} set", "goes on")


def test_not_under_a_debugger():
    for module in ("bdb", "pydevd", "debugpy"):
        assert run(f"import sys; sys.modules[{module!r}] = sys\n{RESTARTS}")[1:] == ["goes on"]


def test_nothing_is_restarted_when_nothing_is_missing():
    assert restart_with({}) is None


@glibc
@pytest.mark.parametrize(
    ("environment", "missing"),
    [
        ({}, WAITING | HEAP),
        (WAITING, HEAP),
        (HEAP, WAITING),
        (WAITING | HEAP, {}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, HEAP),
        ({"GOMP_SPINCOUNT": "0"}, HEAP),
        ({"MALLOC_ARENA_MAX": "2"}, WAITING),
        ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}, WAITING),
    ],
)
def test_what_the_user_has_set_stands(environment, missing, monkeypatch):
    monkeypatch.setattr(process_settings, "_ACCELERATORS", ())
    assert missing_settings(environment) == missing


@glibc
def test_a_machine_with_an_accelerator_is_left_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(process_settings, "_ACCELERATORS", (str(tmp_path),))
    assert missing_settings({}) == {}


@pytest.mark.parametrize(
    ("environment", "theirs"),
    [({}, False), (HEAP, False), ({"MALLOC_TOP_PAD_": "1"}, True), ({"GLIBC_TUNABLES": ""}, True)],
)
def test_our_own_settings_are_not_the_users(environment, theirs):
    assert user_sets_heap(environment) == theirs


@glibc
def test_a_freed_tensors_place_takes_one_of_the_same_size():
    """Of 20; a tensor may find another hole that is large enough. Without the settings it is 1."""
    assert int(run(REUSES, **HEAP)[0]) >= 18
    assert int(run(REUSES)[0]) <= 5


@pytest.mark.parametrize(
    ("environment", "quickly"),
    [
        ({}, True),
        ({"OMP_WAIT_POLICY": "active"}, True),
        ({"OMP_WAIT_POLICY": "passive"}, False),
        ({"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"}, True),
        ({"GOMP_SPINCOUNT": "infinite"}, True),
        ({"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": "0"}, False),
        (WAITING, True),
    ],
)
def test_how_soon_threads_wake(environment, quickly):
    assert threads_wake_quickly(environment) is quickly
