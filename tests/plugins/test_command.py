"""``rlhf plugins`` and plug-ins of other packages in a configuration."""

from __future__ import annotations

import pytest
import yaml

from conftest import GOOD
from rlhf_lightning.cli import main


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")


def test_lists_all_kinds(capsys):
    assert main(["plugins"]) == 0
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if "group_center" in line)
    for cell in ("advantage", "rlhf_lightning.algorithms.advantages.GroupCenter", "built-in", "Dr. GRPO"):
        assert cell in row
    assert any("policy_loss" in line for line in lines)


def test_lists_one_kind_with_other_packages(capsys, distribution):
    distribution("demo-dist", {"advantage": {"scaled": "demo_good:Scaled"}}, demo_good=GOOD)
    assert main(["plugins", "--kind", "advantage"]) == 0
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if "scaled" in line)
    for cell in ("demo_good.Scaled", "package demo-dist 1.2", "Rewards times a factor."):
        assert cell in row
    assert "policy_loss" not in out


def test_a_broken_one_is_listed_with_its_error(capsys, distribution):
    distribution("demo-dist", {"advantage": {"broken": "demo_broken:T"}}, demo_broken="import no_such_module")
    assert main(["plugins", "--kind", "advantage"]) == 1
    rows = capsys.readouterr().out.splitlines()
    assert any("broken" in row and "No module named 'no_such_module'" in row for row in rows)
    assert any("rloo" in row for row in rows)


def test_a_duplicate_spoils_its_kind_only(capsys, distribution):
    distribution("demo-dist", {"advantage": {"group": "demo_good:Scaled"}}, demo_good=GOOD)
    assert main(["plugins"]) == 1
    out = capsys.readouterr().out
    assert "two advantage plug-ins are called 'group'" in out
    assert "rlhf_lightning.algorithms.losses.Clip" in out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--kind", "advantag"], "no kind of plug-in is called 'advantag'. Did you mean 'advantage'?"),
        (["chek"], "unknown action 'chek'. Did you mean 'check'?"),
        (["check"], "name a class, as package.module:Class"),
        (["check", "Thing"], "write package.module:Class"),
        (["check", "no_such_module:Thing"], "no_such_module.Thing does not import: ModuleNotFoundError"),
        (["check", "builtins:dict"], "dict inherits from no contract of rlhf_lightning.protocols"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_bad_input(capsys, words, expected):
    assert main(["plugins", *words]) == 2
    assert expected in capsys.readouterr().err


def test_check_says_what_is_wrong(capsys, distribution):
    distribution("demo-dist", {}, demo_good=GOOD)
    assert main(["plugins", "check", "demo_good:Scaled"]) == 0
    assert "demo_good:Scaled is a sound advantage" in capsys.readouterr().out
    bad = GOOD.replace("rewards.values * self.factor", "rewards.values.sum(1)")
    distribution("demo-bad", {}, demo_bad=bad)
    assert main(["plugins", "check", "demo_bad:Scaled"]) == 1
    out = capsys.readouterr().out
    assert "FAIL  shape: advantages.values has shape (12,), expected (12, 5)" in out
    assert "NOT a sound advantage" in out


CONFIG = """\
model:
  class_path: demo_module.Module
  init_args: {advantage: {name: scaled, factor: 3}}
"""
MODULE = """
from __future__ import annotations
from lightning.pytorch import LightningModule
from rlhf_lightning.protocols import AdvantageEstimator

class Module(LightningModule):
    def __init__(self, advantage: AdvantageEstimator) -> None:
        super().__init__()
"""


def test_a_configuration_names_a_plugin_of_another_package(capsys, distribution, monkeypatch):
    entries = {"advantage": {"scaled": "demo_good:Scaled", "broken": "demo_broken:T"}}
    folder = distribution("demo-dist", entries, demo_good=GOOD, demo_module=MODULE, demo_broken="import no_such_module")
    monkeypatch.chdir(folder)
    (folder / "demo.yaml").write_text(CONFIG)
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", "demo.yaml", "--print_config"])
    assert stopped.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    advantage = printed["model"]["init_args"]["advantage"]
    assert advantage == {"class_path": "demo_good.Scaled", "init_args": {"factor": 3.0}}
    assert main(["fit", "--config", "demo.yaml", "--model.advantage=broken"]) == 2
    assert "'broken' (demo_broken:T of package demo-dist 1.2) does not import" in capsys.readouterr().err
