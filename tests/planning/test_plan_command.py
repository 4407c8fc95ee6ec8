"""``rlhf plan`` and the look that ``rlhf fit`` takes first."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from rlhf_lightning.cli import main, plans
from rlhf_lightning.configfiles import shipped_configs
from rlhf_lightning.planning.machines import machine_named

PAPER = [name for name in shipped_configs() if name.startswith("paper/")]
ROOT = Path(__file__).parents[2]
TEXT = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/plan.md"))
COMMANDS = sorted(set(re.findall(r"^rlhf plan [^#\n]+", TEXT, flags=re.MULTILINE)))
QUICK = ["--trainer.max_epochs=1", "--model.prompts_per_rollout=4", "--model.updates_per_rollout=1"]


@pytest.fixture
def rlhf(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(*words):
        capsys.readouterr()
        code = main(words)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return run


def planned(rlhf, *words):
    code, out, err = rlhf("plan", *words, "--json")
    assert code in (0, 1), err
    found = json.loads(out)
    assert found["fits"] == (code == 0)
    return found


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_runs_are_planned_without_their_models(rlhf, name):
    words = ("--config", name, "--devices", "64", "--device", "a100-80gb", "--trainer.strategy=fsdp2", "--price", "2.5")
    found = planned(rlhf, *words)
    assert found["peak_bytes"] > 0 and found["seconds_per_epoch"] > 0 and found["cost_per_epoch"] > 0
    assert found["fits"] or found["remedies"]
    assert any("glm4" in str(model["assumed"]) for model in found["models"].values())


def test_sizes_of_the_papers_models(rlhf):
    words = ("--devices", "64", "--device", "h100-80gb")
    sizes = {n: planned(rlhf, "--config", f"paper/ppo_{n}_rm.yaml", *words)["models"] for n in ("9b", "32b", "200b")}
    billions = {n: round(models["reward_model"]["parameters"] / 1e9) for n, models in sizes.items()}
    assert billions == {"9b": 9, "32b": 32, "200b": 199}
    assert {round(models["policy"]["parameters"] / 1e9, 1) for models in sizes.values()} == {9.4}


def test_an_embedded_model_is_planned_with_its_data(rlhf):
    found = planned(rlhf, "--config", "quickstart.yaml")
    assert found["fits"] and found["notes"] == ["device cpu (--device says another)"]
    assert set(found["models"]) == {"policy", "reference"}  # kl_loss is given
    assert found["models"]["policy"]["assumed"] is None


@pytest.mark.parametrize("name", ["tiny/ppo.yaml", "tiny/sft.yaml", "tiny/orm.yaml", "tiny/dapo.yaml"])
def test_all_four_modules(rlhf, name):
    found = planned(rlhf, "--config", name)
    assert found["fits"]
    assert ("rollout" in found["phases"]) == (name not in ("tiny/sft.yaml", "tiny/orm.yaml"))
    assert ("critic" in found["models"]) == (name == "tiny/ppo.yaml")


def test_overrides_are_those_of_fit(rlhf):
    plain = planned(rlhf, "--config", "paper/orm_9b.yaml", "--device", "a100-80gb")
    changed = planned(rlhf, "--config", "paper/orm_9b.yaml", "--device", "a100-80gb", "--model.lora={rank: 8}")
    assert changed["peak_bytes"] < plain["peak_bytes"]
    _, _, err = rlhf("plan", "--config", "quickstart.yaml", "--model.token_budgte=3")
    assert "token_budget" in err


def test_unknown_sizes_are_refused_with_how_to_state_them(rlhf, tmp_path):
    words = ("--config", "paper/orm_9b.yaml", "--model.backbone={name: hub, repo: nobody/secret-7b}")
    code, _, err = rlhf("plan", *words)
    assert code == 2 and "nobody/secret-7b" in err and "--architecture nobody/secret-7b=" in err
    named = planned(rlhf, *words, "--device", "a100-80gb", "--architecture", "nobody/secret-7b=glm4-32b")
    assert "glm4-32b, as stated" in named["models"]["reward model"]["assumed"]
    (tmp_path / "own.yaml").write_text("config: {model_type: llama, hidden_size: 64, num_hidden_layers: 2}\n")
    own = planned(rlhf, *words, "--architecture", "nobody/secret-7b=own.yaml")
    assert own["models"]["reward model"]["parameters"] < 50e6


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--device", "a100"], "a100-"),
        (["--memory", "lots"], "--memory"),
        (["--devices", "0"], "--devices"),
        (["--mfu", "4"], "--mfu"),
        (["--architecture", "x"], "PLACE=CARD"),
        (["--architecture", "embedded-arithmetic=glm5"], "glm4-9b"),
        (["--trainer.strategy=fsdp9"], "trainer.strategy"),
    ],
)
def test_what_cannot_be_is_one_line(rlhf, words, said):
    code, _, err = rlhf("plan", "--config", "quickstart.yaml", *words)
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(lines) == 1 and said in lines[0]


def test_tables_show_parts_and_verdict(rlhf):
    code, out, _ = rlhf("plan", "--config", "paper/ppo_9b_rm.yaml", "--devices", "8", "--device", "a100-80gb")
    assert code == 1
    for word in ("optimizer states", "gradients", "activations", "does not fit", "assumed", "FLOP", "["):
        assert word in out


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_that_are_shown_work(rlhf, command):
    assert rlhf(*shlex.split(command)[1:])[0] in (0, 1)


def with_memory(monkeypatch, size):
    small = replace(machine_named("cpu"), memory=float(size))
    monkeypatch.setattr(plans, "machine_named", lambda name: small)


def test_fit_refuses_what_cannot_fit_before_weights_are_loaded(rlhf, monkeypatch):
    with_memory(monkeypatch, 100e6)
    monkeypatch.setattr("rlhf_lightning.models.sources.Folder.load", lambda self: pytest.fail("weights were loaded"))
    code, _, err = rlhf("fit", "--config", "quickstart.yaml", *QUICK)
    assert code == 2 and "does not fit" in err and "--no-plan" in err


def test_no_plan_goes_on(rlhf, monkeypatch):
    with_memory(monkeypatch, 100e6)
    code, _, err = rlhf("fit", "--config", "quickstart.yaml", "--no-plan", *QUICK)
    assert code == 0, err


def test_a_run_that_may_not_fit_is_warned_of_and_goes_on(rlhf, monkeypatch):
    monkeypatch.setattr(plans, "fits", lambda job: job.lengths.response == 1)
    code, _, err = rlhf("fit", "--config", "quickstart.yaml", *QUICK)
    assert code == 0 and "responses at their longest" in err


def test_validate_knows_no_such_word(rlhf):
    code, _, err = rlhf("validate", "--config", "quickstart.yaml", "--no-plan")
    assert code == 2 and "no-plan" in err
