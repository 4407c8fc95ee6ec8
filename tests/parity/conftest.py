"""Comparisons with TRL: skipped where it is not installed, unless PARITY_REQUIRED is set (``make parity`` sets it)."""

import importlib.metadata
import importlib.util
import os

import pytest
import torch

from parity.cases import ROOT

PEER, OLD_PEER = "1.16.0", "1.12.0"
OLD_FOLDER = ROOT / ".parity" / f"trl-{OLD_PEER}"


def missing(what: str) -> None:
    reason = f"{what} is not installed: make parity"
    if os.environ.get("PARITY_REQUIRED"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session", autouse=True)
def peer():
    """TRL, in the version that these comparisons are written against."""
    if importlib.util.find_spec("trl") is None or importlib.metadata.version("trl") != PEER:
        missing(f"trl {PEER}")


@pytest.fixture(scope="session")
def old_peer():
    """Folder with the last TRL that has PPO, to be put before the installed one on PYTHONPATH."""
    if not (OLD_FOLDER / "trl").is_dir():
        missing(f"trl {OLD_PEER} (in {OLD_FOLDER.relative_to(ROOT)})")
    return OLD_FOLDER


@pytest.fixture(autouse=True)
def in_float64():
    """Weights of tokens and rewards are float32 in training; here their rounding would hide what is tested."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def pytest_collection_modifyitems(items):
    for item in items:
        if "parity" in item.path.parts:
            item.add_marker(pytest.mark.parity)
