"""What a study's configuration may say, and what is told where it cannot be."""

import pytest

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.study.state import plan_study

AXES = {"seed": [1, 2], "size": {"small": {}, "large": {}}}
FIT = {"command": "fit", "over": ["seed"], "options": {"seed_everything": "{seed}"}}


def plan(axes=AXES, **parts):
    return plan_study("here", axes, parts)


@pytest.mark.parametrize(
    ("axes", "parts", "told"),
    [
        (AXES, {}, "parts: a study needs at least one"),
        ({"Seed": [1]}, {"a": FIT}, "axes: 'Seed' must be small letters"),
        ({"seed": 3}, {"a": FIT}, "axes.seed: must be a list of labels"),
        ({"seed": [1, 1]}, {"a": FIT}, "axes.seed: must hold labels, each once"),
        ({"seed": []}, {"a": FIT}, "axes.seed: must hold labels"),
        ({"seed": ["a/b"]}, {"a": FIT}, "axes.seed: 'a/b' must be letters"),
        ({"seed": {1: {"b": {}}}}, {"a": FIT}, "axes.seed.1: parts over seed: there is no 'b'. Known: a"),
        ({"seed": {1: {"a": 3}}}, {"a": FIT}, "axes.seed.1.a: must be keys with values"),
        (AXES, {"seed": FIT}, "parts.seed: is the name of an axis too"),
        (AXES, {"a": {**FIT, "comand": "fit"}}, "parts.a.comand: unknown key. Did you mean 'command'?"),
        (AXES, {"a": {"over": ["seed"]}}, "parts.a: has no command"),
        (AXES, {"a": {**FIT, "command": "fitt"}}, "parts.a.command: there is no 'fitt'. Did you mean 'fit'?"),
        (AXES, {"a": {**FIT, "over": ["sede"]}}, "parts.a.over: there is no 'sede'. Did you mean 'seed'?"),
        (AXES, {"a": {**FIT, "over": "seed"}}, "parts.a.over: must be a list"),
        (AXES, {"a": {**FIT, "role": "policies"}}, "parts.a.role: there is no 'policies'. Did you mean 'policy'?"),
        (AXES, {"a": {**FIT, "role": "best_of_n"}}, "parts.a.command, with role best_of_n: there is no 'fit'"),
        (AXES, {"logs": FIT}, "parts.logs: is the name of a folder of the study's own"),
        (AXES, {"a": {**FIT, "options": {"x": "{size}"}}}, "{size} is an axis that the part is not over: add it"),
        (AXES, {"a": {**FIT, "without": [{"size": "small"}]}}, "parts.a.without[0]: there is no 'size'"),
        (AXES, {"a": {**FIT, "without": [{"seed": 3}]}}, "parts.a.without[0].seed: there is no '3'"),
        (AXES, {"a": {**FIT, "options": {"x": "{sead}"}}}, "{sead}: there is no 'sead'. Did you mean 'seed'?"),
        (AXES, {"a": {**FIT, "options": {"x": "{seed[size=small]}"}}}, "{seed}: only a part takes [axis=label]"),
        (
            AXES,
            {"a": FIT, "b": {"command": "fit", "options": {"x": "{a}"}}},
            "parts.b.options: {a}: which seed? Say {a[seed=LABEL]}",
        ),
        (
            AXES,
            {"a": FIT, "b": {"command": "fit", "options": {"x": "{a[seed=3]}"}}},
            "parts.b.options: {a}: there is none for seed 3",
        ),
        (
            AXES,
            {"a": {"command": "fit", "options": {"x": "{b}"}}, "b": {"command": "fit", "options": {"x": "{a}"}}},
            "parts: a, b need each other in a circle",
        ),
    ],
)
def test_what_cannot_be_is_told(axes, parts, told):
    with pytest.raises(ConfigError) as refused:
        plan(axes, **parts)
    assert told in str(refused.value)


def test_combinations_are_left_out_by_all_they_name():
    rule = [{"seed": 1, "size": ["large"]}]
    study = plan(a={"command": "fit", "over": ["seed", "size"], "without": rule})
    assert list(study.pieces) == ["a/seed-1_size-small", "a/seed-2_size-small", "a/seed-2_size-large"]


def test_a_part_over_nothing_is_one_piece():
    assert list(plan(a={"command": "fit"}).pieces) == ["a"]
