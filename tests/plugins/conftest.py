"""Distributions made on the fly: a module and its ``.dist-info``, on ``sys.path`` for one test."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

GOOD = '''
from rlhf_lightning.protocols import AdvantageEstimator
from rlhf_lightning.types import Advantages


class Scaled(AdvantageEstimator):
    """Rewards times a factor.

    Args:
        factor: What they are multiplied with.
    """

    def __init__(self, factor: float = 2.0) -> None:
        self.factor = factor

    def __call__(self, rewards):
        return Advantages(rewards.values * self.factor)
'''


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Installs ``distribution(name, {"advantage": {"scaled": "module:Class"}}, module="source")``."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def install(name: str, entry_points: dict[str, dict[str, str]], **modules: str) -> Path:
        for module, source in modules.items():
            (tmp_path / f"{module}.py").write_text(textwrap.dedent(source))
        info = tmp_path / f"{name.replace('-', '_')}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        groups = (
            f"[rlhf_lightning.{kind}]\n" + "".join(f"{key} = {value}\n" for key, value in entries.items())
            for kind, entries in entry_points.items()
        )
        (info / "entry_points.txt").write_text("\n".join(groups))
        importlib.invalidate_caches()
        return tmp_path

    yield install
    for module in set(sys.modules) - before:
        if module.startswith("demo_"):
            del sys.modules[module]
