"""From parts to commands."""

import pytest

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.study.state import plan_study

AXES = {
    "seed": [1, 2],
    "width": [32, 64],
    "reward_model": [32, 64],
    "algorithm": {
        "PPO": {"trained": {"config": "tiny/ppo.yaml", "model.critic": "{rm}"}},
        "GRPO": {"trained": {"config": "tiny/grpo.yaml"}},
    },
}
PARTS = {
    "trained": {
        "command": "fit",
        "over": ["algorithm", "reward_model"],
        "options": {"model.scorers": [{"path": "{rm}"}], "model.policy": "{sft[width=64]}", "x": "{reward_model}"},
    },
    "rm": {
        "command": "fit",
        "over": ["reward_model"],
        "options": {"config": "tiny/orm.yaml", "model.backbone": "{sft[width=reward_model]}"},
        "gives": "reward_model",
    },
    "sft": {"command": "fit", "over": ["width"], "options": {"config": "tiny/sft.yaml", "text": "is {width} wide"}},
    "pool": {"command": "sample", "options": {"policy": "{sft[width=32]}"}, "gives": "pool.jsonl"},
}


def plan(parts=PARTS, folder="here"):
    return plan_study(folder, {axis: AXES[axis] for axis in AXES if axis != "algorithm" or "trained" in parts}, parts)


def words(name, parts=PARTS, folder="here"):
    study = plan(parts, folder)
    return study.pieces[name].command(study.folder)


def test_pieces_stand_after_what_they_need():
    pieces = plan().pieces
    places = {name: place for place, name in enumerate(pieces)}
    assert all(places[need] < places[name] for name, piece in pieces.items() for need in piece.needs)
    assert len(pieces) == 4 + 2 + 2 + 1


def test_a_result_is_that_of_the_same_labels_or_of_those_named():
    assert words("trained/algorithm-PPO_reward_model-64") == [
        "fit",
        "--config=tiny/ppo.yaml",
        "--run.root=here",
        "--run.name=trained/algorithm-PPO_reward_model-64",
        "--ckpt_path=auto",
        '--model.scorers=[{"path": "here/rm/reward_model-64/reward_model"}]',
        "--model.policy=here/sft/width-64",
        "--x=64",
        "--model.critic=here/rm/reward_model-64/reward_model",
    ]


def test_an_axis_can_stand_for_another():
    assert "--model.backbone=here/sft/width-32" in words("rm/reward_model-32")


def test_a_label_inside_a_text_is_text_and_alone_a_number():
    assert "--text=is 64 wide" in words("sft/width-64")
    nested = {"sft": {"command": "fit", "over": ["width"], "options": {"a": {"b": "{width}", "c": "w{width}"}}}}
    assert '--a={"b": 64, "c": "w64"}' in words("sft/width-64", nested)


def test_jobs_are_told_their_file():
    assert words("pool") == ["sample", "--out=here/pool/pool.jsonl", "--policy=here/sft/width-32"]


def test_several_configurations_keep_their_order():
    parts = {"sft": {"command": "fit", "over": ["width"], "options": {"a": 1, "config": ["x{width}.yaml", "y.yaml"]}}}
    assert words("sft/width-32", parts)[1:3] == ["--config=x32.yaml", "--config=y.yaml"]


def test_only_what_is_written_as_a_number_is_one():
    axes = {"x": ["1e5", "NaN", "007", "2.5", "true"]}
    study = plan_study("here", axes, {"a": {"command": "fit", "over": ["x"], "options": {"y": ["{x}", "é☺"]}}})
    given = [piece.words[-1] for piece in study.pieces.values()]
    assert given == [f'--y=[{x}, "é☺"]' for x in ('"1e5"', '"NaN"', "7", "2.5", '"true"')]


def test_braces_of_other_kinds_are_left_alone():
    parts = {"pool": {"command": "sample", "options": {"sampler": "{name: in_process, stop: ['{', '{}']}"}}}
    assert words("pool", parts)[-1] == "--sampler={name: in_process, stop: ['{', '{}']}"


def known(parts=PARTS, folder="here"):
    study = plan(parts, folder)
    return {name: study.fingerprint(piece) for name, piece in study.pieces.items()}


def test_a_moved_study_is_the_same():
    assert known(folder="here") == known(folder="/somewhere/else")


def test_another_command_is_another():
    before = known()
    after = known({**PARTS, "sft": {**PARTS["sft"], "options": {"config": "tiny/sft.yaml", "text": "{width}"}}})
    assert {name.split("/")[0] for name in before if before[name] != after[name]} == {"sft"}


def test_another_result_makes_another(tmp_path):
    study = plan(folder=tmp_path)
    study.finish(study.pieces["sft/width-32"], 1.0)
    before = {name: study.fingerprint(piece) for name, piece in study.pieces.items()}
    study.finish(study.pieces["sft/width-32"], 1.0)
    after = {name: study.fingerprint(piece) for name, piece in study.pieces.items()}
    assert [name for name in before if before[name] != after[name]] == ["rm/reward_model-32", "pool"]


def test_a_changed_configuration_makes_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parts = {"sft": {"command": "fit", "options": {"config": "mine.yaml"}}}
    (tmp_path / "mine.yaml").write_text("a: 1\n")
    before = known(parts)
    (tmp_path / "mine.yaml").write_text("a: 2\n")
    assert known(parts) != before


def test_a_configuration_that_is_not_there_is_told():
    with pytest.raises(ConfigError, match=r"tiny/stf.yaml is neither .* Did you mean 'tiny/sft.yaml'"):
        known({"sft": {"command": "fit", "options": {"config": "tiny/stf.yaml"}}})
