"""``rlhf fit`` and its sisters: what is built from a configuration, and what a run folder holds."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
import yaml
from cli_fakes import FakeModule

from rlhf_lightning.algorithms.advantages import RLOO, Group
from rlhf_lightning.algorithms.kl import Adaptive, Fixed
from rlhf_lightning.algorithms.transforms import ClipRewards, LengthPenalty, Whiten


def test_plugins_are_built_from_their_short_forms(rlhf):
    assert rlhf("fit", "--config", "fake.yaml").code == 0
    (module,) = FakeModule.made
    assert isinstance(module.advantage, Group)
    assert module.advantage.eps == 1e-5
    assert [type(t) for t in module.reward_transforms] == [ClipRewards, LengthPenalty]
    assert module.reward_transforms[1].per_token == 0.5
    assert isinstance(module.kl_loss.controller, Fixed)
    assert module.kl_loss.controller.coefficient == 0.02


@pytest.mark.parametrize(
    "words",
    [
        ["--model.advantage=rloo"],
        ["--model.advantage", "rloo"],
        ["--model.init_args.advantage", "rloo"],
        ["--model.init_args.advantage=rloo"],
        ["--model.advantage.name=rloo"],
        ["--model.advantage.class_path=RLOO"],
        ["--model.advantage={name: rloo}"],
        ["--model.advantage=rlhf_lightning.algorithms.advantages.RLOO"],
    ],
)
def test_a_plugin_may_be_named_on_the_command_line(rlhf, words):
    assert rlhf("fit", "--config", "fake.yaml", *words).code == 0
    assert isinstance(FakeModule.made[-1].advantage, RLOO)


def test_a_plugins_arguments_may_be_set_on_the_command_line(rlhf):
    words = ["--model.advantage.eps=0.25", "--model.init_args.kl_loss.controller.coefficient", "0.75"]
    assert rlhf("fit", "--config", "fake.yaml", *words).code == 0
    assert FakeModule.made[-1].advantage.eps == 0.25
    assert FakeModule.made[-1].kl_loss.controller.coefficient == 0.75


def test_lists_are_replaced_or_appended_to(rlhf):
    rlhf("fit", "--config", "fake.yaml", "--model.reward_transforms=[{name: clip, low: -3}]", "--run.name=a")
    rlhf("fit", "--config", "fake.yaml", "--model.reward_transforms+=whiten", "--run.name=b")
    replaced, appended = FakeModule.made
    assert [(type(t), t.low) for t in replaced.reward_transforms] == [(ClipRewards, -3.0)]
    assert [type(t) for t in appended.reward_transforms] == [ClipRewards, LengthPenalty, Whiten]


def test_lists_are_appended_to_in_files_as_on_the_command_line(rlhf, folder: Path):
    (folder / "one.yaml").write_text("model: {init_args: {reward_transforms+: whiten}}\n")
    (folder / "two.yaml").write_text("model: {init_args: {reward_transforms+: [{name: clip, low: -3}, whiten]}}\n")
    files = ["--config", "fake.yaml", "--config", "one.yaml", "--config", "two.yaml"]
    assert rlhf("fit", *files, "--model.reward_transforms+={name: clip, low: -5}").code == 0
    kinds = [(type(t), getattr(t, "low", None)) for t in FakeModule.made[-1].reward_transforms]
    assert kinds[2:] == [(Whiten, None), (ClipRewards, -3.0), (Whiten, None), (ClipRewards, -5.0)]
    assert [kind for kind, _ in kinds[:2]] == [ClipRewards, LengthPenalty]


def test_callbacks_are_appended_to_in_a_file_and_there_may_be_none_before(rlhf, folder: Path):
    kill = "{class_path: cli_fakes.Kill, init_args: {number: 0}}"
    saves = "{class_path: RolloutCheckpoint, init_args: {folder: elsewhere, every: 2}}"
    (folder / "one.yaml").write_text(f"trainer: {{callbacks+: [{kill}]}}\n")
    (folder / "two.yaml").write_text(f"trainer: {{callbacks+: {saves}}}\n")
    outcome = rlhf("fit", "--config", "fake.yaml", "--config", "one.yaml", "--config", "two.yaml", "--run.name=added")
    assert outcome.code == 0, outcome.err
    saved = yaml.safe_load((folder / "runs/added/config.yaml").read_text())["trainer"]["callbacks"]
    assert [c["class_path"].rpartition(".")[2] for c in saved] == ["Kill", "RolloutCheckpoint"]
    assert (folder / "elsewhere" / "last.ckpt").exists()


def test_arguments_of_what_was_just_appended(rlhf, folder: Path):
    """``+=`` and then its arguments, as Lightning's own command line takes them; where there was no list before too."""
    words = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=loss", "--trainer.callbacks.patience=7"]
    words += ["--trainer.callbacks+=LearningRateMonitor", "--trainer.callbacks.logging_interval=epoch"]
    (folder / "plain.yaml").write_text("trainer: {callbacks: null, logger: true}\n")
    outcome = rlhf("fit", "--config", "fake.yaml", "--config", "plain.yaml", *words, "--print_config")
    assert outcome.code == 0, outcome.err
    first, second = yaml.safe_load(outcome.out)["trainer"]["callbacks"][-2:]
    assert (first["init_args"]["monitor"], first["init_args"]["patience"]) == ("loss", 7)
    assert second["init_args"]["logging_interval"] == "epoch"


def test_a_callback_whose_default_is_an_enumeration_is_saved(rlhf, folder: Path):
    """``Timer(interval=Interval.step)``: the saved text is what may be written."""
    timer = "{class_path: lightning.pytorch.callbacks.Timer, init_args: {duration: '00:00:10:00'}}"
    (folder / "timer.yaml").write_text(f"trainer: {{callbacks+: [{timer}]}}\n")
    outcome = rlhf("fit", "--config", "fake.yaml", "--config", "timer.yaml", "--run.name=timed")
    assert outcome.code == 0, outcome.err
    saved = yaml.safe_load((folder / "runs/timed/config.yaml").read_text())["trainer"]["callbacks"]
    assert saved[-1]["init_args"]["interval"] == "step"
    assert rlhf("fit", "--config", "runs/timed/config.yaml", "--run.name=again").code == 0


def test_a_place_in_a_list_and_another_module_on_the_command_line(rlhf, folder: Path):
    assert rlhf("fit", "--config", "fake.yaml", "--model.reward_transforms.0.low=-7").code == 0
    assert FakeModule.made[-1].reward_transforms[0].low == -7.0
    words = ["--model=cli_fakes.FakeRewardModule", "--data=cli_fakes.FakeData", "--print_config"]
    printed = yaml.safe_load(rlhf("fit", "--config", "fake.yaml", *words).out)
    assert printed["model"]["class_path"] == "cli_fakes.FakeRewardModule"


def test_a_mapping_with_a_plugin_inside_it_on_the_command_line(rlhf, folder):
    given = "{estimator: k1, controller: {name: fixed, coefficient: 0.05}}"
    outcome = rlhf("fit", "--config", "fake.yaml", f"--model.kl_loss={given}", "--model.options={name: fixed}")
    assert outcome.code == 0, outcome.err
    module = FakeModule.made[-1]
    assert module.kl_loss.estimator == "k1" and isinstance(module.kl_loss.controller, Fixed)
    assert module.kl_loss.controller.coefficient == 0.05
    assert module.options == {"name": "fixed"}


def test_such_a_mapping_is_checked_and_can_be_overridden_further(rlhf, folder):
    given = "--model.kl_loss={estimator: k1, controller: {name: fixed, coefficient: 0.05}}"
    rlhf("fit", "--config", "fake.yaml", given, "--model.kl_loss.controller.coefficient=0.25")
    assert FakeModule.made[-1].kl_loss.controller.coefficient == 0.25
    wrong = rlhf("fit", "--config", "fake.yaml", "--model.kl_loss={controller: {name: fixd}}", "--run.name", "b")
    assert "model.kl_loss.controller: no kl_controller is called 'fixd'. Did you mean 'fixed'?" in wrong.error


def test_another_plugin_drops_the_arguments_of_the_first(rlhf):
    words = ["--model.kl_loss.controller=adaptive", "--model.kl_loss.controller.target=2.5"]
    assert rlhf("fit", "--config", "fake.yaml", *words).code == 0
    controller = FakeModule.made[-1].kl_loss.controller
    assert isinstance(controller, Adaptive)
    assert controller.target == 2.5


def test_later_files_win_and_the_command_line_wins_over_all(rlhf, folder: Path):
    (folder / "over.yaml").write_text(
        "model: {init_args: {lr: 0.5, advantage: {eps: 0.125}}}\ntrainer: {max_epochs: 1}\n"
    )
    outcome = rlhf("fit", "--trainer.max_epochs=3", "--config", "fake.yaml", "--config", "over.yaml")
    assert outcome.code == 0
    module = FakeModule.made[-1]
    assert (module.lr, module.advantage.eps) == (0.5, 0.125)
    assert module.seen_epochs == [0, 0, 1, 1, 2, 2]
    assert (folder / "runs" / "over").is_dir()


def test_the_saved_configuration_is_whole_and_repeats_the_run(rlhf, folder: Path):
    rlhf("fit", "--config", "fake.yaml")
    saved = yaml.safe_load((folder / "runs/fake/config.yaml").read_text())
    arguments = saved["model"]["init_args"]
    assert arguments["advantage"] == {
        "class_path": "rlhf_lightning.algorithms.advantages.Group",
        "init_args": {"eps": 1e-5},
    }
    assert arguments["reward_transforms"][0]["init_args"] == {"low": -10.0, "high": 10.0}
    assert saved["run"] == {"name": "fake", "root": "runs"}
    assert rlhf("fit", "--config", "runs/fake/config.yaml", "--run.name=again").code == 0
    first, second = FakeModule.made
    assert torch.equal(first.layer.weight, second.layer.weight)


def test_print_config_prints_full_class_paths_and_trains_nothing(rlhf, folder: Path):
    outcome = rlhf("fit", "--config", "fake.yaml", "--model.advantage=rloo", "--print_config")
    printed = yaml.safe_load(outcome.out)
    assert outcome.code == 0
    assert printed["model"]["init_args"]["advantage"]["class_path"] == "rlhf_lightning.algorithms.advantages.RLOO"
    assert not FakeModule.made
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(("words", "module", "data"), [([], 1, 1), (["--seed_everything=7", "--data.seed=3"], 7, 3)])
def test_the_seed_reaches_module_and_data(rlhf, folder: Path, words, module, data):
    assert rlhf("fit", "--config", "fake.yaml", *words).code == 0
    saved = yaml.safe_load((folder / "runs/fake/config.yaml").read_text())
    assert saved["model"]["init_args"]["seed"] == FakeModule.made[-1].seed == module
    assert saved["data"]["init_args"]["seed"] == data


def test_the_trainer_makes_the_data_anew_each_epoch(rlhf):
    rlhf("fit", "--config", "fake.yaml")
    trainer = FakeModule.made[-1].trainer
    assert trainer.reload_dataloaders_every_n_epochs == 1
    assert trainer.num_sanity_val_steps == 0
    assert trainer.default_root_dir.endswith("runs/fake")


def test_resume_goes_on_from_the_last_checkpoint(rlhf, folder: Path):
    rlhf("fit", "--config", "fake.yaml", "--run.name=whole", "--trainer.max_epochs=4")
    rlhf("fit", "--config", "fake.yaml")
    resumed = rlhf("fit", "--config", "fake.yaml", "--trainer.max_epochs=4", "--ckpt_path", "last")
    assert resumed.code == 0
    whole, _, second = FakeModule.made
    assert second.seen_epochs == [2, 2, 3, 3]
    assert torch.equal(whole.layer.weight, second.layer.weight)
    first, after = (folder / "runs/fake/config.yaml").read_text(), (folder / "runs/fake/config-2.yaml").read_text()
    assert yaml.safe_load(first)["trainer"]["max_epochs"] == 2
    assert yaml.safe_load(after)["trainer"]["max_epochs"] == 4


def test_one_command_begins_a_run_and_goes_on_with_it(rlhf, folder: Path):
    for epochs in (1, 3):
        words = ("fit", "--config", "fake.yaml", f"--trainer.max_epochs={epochs}", "--ckpt_path", "auto")
        assert rlhf(*words).code == 0
    kept = sorted(path.name for path in (folder / "runs/fake/checkpoints").glob("rollout-*"))
    assert kept == ["rollout-000002.ckpt", "rollout-000003.ckpt"]


def test_the_newest_checkpoint_is_found_without_last(rlhf, folder: Path):
    rlhf("fit", "--config", "fake.yaml")
    (folder / "runs/fake/checkpoints/last.ckpt").unlink()
    assert rlhf("fit", "--config", "fake.yaml", "--trainer.max_epochs=3", "--ckpt_path", "last").code == 0
    assert FakeModule.made[-1].seen_epochs == [2, 2]


def test_a_checkpoint_of_the_run_may_be_named(rlhf, folder: Path):
    rlhf("fit", "--config", "fake.yaml")
    words = ["--trainer.max_epochs=2", "--ckpt_path", "runs/fake/checkpoints/rollout-000001.ckpt"]
    assert rlhf("fit", "--config", "fake.yaml", *words).code == 0
    assert FakeModule.made[-1].seen_epochs == [1, 1]


def test_a_checkpoint_with_pickled_code_is_not_loaded(rlhf, folder: Path):
    rlhf("fit", "--config", "fake.yaml")
    path = folder / "runs/fake/checkpoints/last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    torch.save(checkpoint | {"evil": Path.cwd}, path)
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        rlhf("fit", "--config", "fake.yaml", "--trainer.max_epochs=4", "--ckpt_path", "last")


def test_validate_takes_the_runs_checkpoint_and_leaves_the_run_alone(rlhf, folder: Path):
    rlhf("fit", "--config", "fake.yaml")
    before = {p: p.read_bytes() for p in (folder / "runs/fake").rglob("*") if p.is_file()}
    assert rlhf("validate", "--config", "fake.yaml", "--ckpt_path", "last").code == 0
    assert {p: p.read_bytes() for p in before} == before
    assert torch.equal(FakeModule.made[0].layer.weight, FakeModule.made[1].layer.weight)


def test_fast_dev_run_leaves_no_folder(rlhf, folder: Path):
    assert rlhf("fit", "--config", "fake.yaml", "--trainer.fast_dev_run=true").code == 0
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_stopped_run_tells_how_to_go_on(rlhf, number, code):
    callback = f"{{class_path: cli_fakes.Kill, init_args: {{number: {int(number)}}}}}"
    outcome = rlhf("fit", "--config", "fake.yaml", "--trainer.max_epochs=9", f"--trainer.callbacks={callback}")
    assert outcome.code == code
    assert FakeModule.made[-1].current_epoch < 2
    assert "rlhf fit --config fake.yaml" in outcome.err
    assert outcome.err.strip().endswith("--ckpt_path last")


def test_free_mappings_are_left_as_they_are(rlhf, edited):
    name = edited("    kl_loss", "    options: {model: group, anything: [1, {policy: x}]}\n    kl_loss")
    assert rlhf("fit", "--config", name).code == 0
    assert FakeModule.made[-1].options == {"model": "group", "anything": [1, {"policy": "x"}]}


def test_our_callbacks_may_be_named_without_their_package(rlhf, folder: Path):
    words = ["--trainer.callbacks={class_path: RolloutCheckpoint, init_args: {folder: elsewhere, every: 2}}"]
    assert rlhf("fit", "--config", "fake.yaml", *words).code == 0
    assert [p.name for p in sorted((folder / "elsewhere").iterdir())] == ["last.ckpt", "rollout-000002.ckpt"]
