"""Mistakes in a configuration are told from the classes' source files, before anything large is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_lightning import registry
from rlhf_lightning.callbacks import RolloutCheckpoint
from rlhf_lightning.cli.arguments import look_first, prepare
from rlhf_lightning.cli.signatures import ImportedClasses, import_class, signature
from rlhf_lightning.cli.sources import SourceClasses
from rlhf_lightning.configfiles import shipped_configs
from rlhf_lightning.errors import RLHFError
from rlhf_lightning.plugins import load_builtins

HEAVY = ("torch", "lightning", "transformers", "torchmetrics", "pandas", "matplotlib", "datasets", "deepspeed", "vllm")

RUN = """
import sys
from rlhf_lightning.cli import main
code = main(sys.argv[1:])
print(*[name for name in {heavy!r} if name in sys.modules], file=sys.stdout)
sys.exit(code)
"""

MISTAKES = {
    "key": (["--model.clip_epz=0.2"], "command line: --model.clip_epz: GRPOModule takes no argument 'clip_epz'"),
    "top key": (["--modle.seed=1"], "unknown key '--modle'. Did you mean '--model'?"),
    "trainer key": (["--trainer.max_epoch=3"], "unknown key. Did you mean 'trainer.max_epochs'?"),
    "plug-in": (["--model.advantage=grop"], "model.advantage: no advantage is called 'grop'. Did you mean 'group'?"),
    "plug-in's key": (["--model.advantage.epz=1"], "Reinforce takes no argument 'epz'. Valid: gamma"),
    "module": (["--model=GRPOModul"], "no class is called 'GRPOModul'. Did you mean 'GRPOModule'?"),
    "callback": (["--trainer.callbacks=RunHealt"], "no class is called 'RunHealt'. Did you mean 'RunHealth'?"),
    "number for a part": (["--model.kl_loss=0.1"], "model.kl_loss: expected a mapping of KLTerm's arguments, got 0.1"),
    "file": (["--config=no_such.yaml"], "--config: no_such.yaml is neither in the working folder nor among"),
    "policy's folder": (["--model.policy=./nowhere"], "model.policy: model folder ./nowhere does not exist"),
}


@pytest.mark.parametrize(("words", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_before_anything_large_is_imported(words, expected, tmp_path: Path):
    command = [sys.executable, "-c", RUN.format(heavy=HEAVY), "fit", "--config", "tiny/grpo.yaml", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (2, ""), done.stderr
    assert expected in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [words for name, (words, _) in MISTAKES.items() if name != "policy's folder"])
def test_both_looks_say_the_same(words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    load_builtins()
    given = ["fit", "--config", "tiny/grpo.yaml", *words]
    with pytest.raises(RLHFError) as first:
        look_first(given)
    with pytest.raises(RLHFError) as second:
        prepare(given)
    assert str(first.value) == str(second.value)


@pytest.mark.parametrize(
    "config", [name for name in shipped_configs() if not name.startswith(("study/", "strategies/"))]
)
def test_nothing_shipped_is_refused(config):
    try:
        look_first(["fit", "--config", config])
    except RLHFError as error:
        assert "this configuration is for another command" in str(error) or "does not exist" in str(error)


def test_plug_ins_and_their_arguments_are_those_of_the_classes():
    load_builtins()
    read, imported = SourceClasses(), ImportedClasses()
    compared = 0
    for kind in registry.KINDS:
        ours = {name: path for name, path in imported.plugins(kind).items() if path.startswith("rlhf_lightning.")}
        assert ours.items() <= read.plugins(kind).items()
        for path in ours.values():
            found, cls = signature(read.get(path, "")), signature(import_class(path, ""))
            assert list(found.hints) == list(cls.hints) or found.open, path
            compared += not found.open
    assert compared > 40


def test_modules_and_callbacks_are_found_by_name():
    read = SourceClasses()
    for package, base in (
        ("modules", "lightning.pytorch.LightningModule"),
        ("data", "lightning.pytorch.LightningDataModule"),
        ("callbacks", "lightning.pytorch.Callback"),
    ):
        ours, _ = ImportedClasses().named(f"rlhf_lightning.{package}", base)
        assert ours.keys() <= read.named(f"rlhf_lightning.{package}", base)[0].keys()
    assert RolloutCheckpoint.__name__ in read.named("rlhf_lightning.callbacks", "lightning.pytorch.Callback")[0]


def test_a_class_of_ones_own_leaves_all_to_the_second_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It may register plug-ins when it is imported."""
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("model: {class_path: mine.Module, init_args: {advantage: my_own, anything: 3}}\n")
    look_first(["fit", "--config", "mine.yaml", "--trainer.callbacks+=mine.Callback"])


def test_a_configuration_is_printed_without_its_models():
    given = ["fit", "--config", "tiny/grpo.yaml", "--model.policy=./nowhere"]
    look_first([*given, "--print_config"])
    with pytest.raises(RLHFError, match=r"model folder \S+nowhere does not exist"):
        look_first(given)
