"""What may stand under ``trainer.strategy``, and what is said of the rest."""

import warnings

import pytest
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, StrategyRegistry

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.strategies import check_strategy, register_strategies, sharding_of, strategy_named
from rlhf_lightning.strategies.deepspeed import warn_of_left_locks


@pytest.mark.parametrize(
    ("name", "near"),
    [("fsdp3", "fsdp2"), ("zero_3", "zero3"), ("dpd", "ddp"), ("fsdp", "fsdp2"), ("ddp_spwan", "ddp_spawn")],
)
def test_an_unknown_one_is_refused_with_the_nearest(rlhf, name, near):
    error = rlhf("fit", "--config", "fake.yaml", f"--trainer.strategy={name}").error
    assert error.startswith(f"trainer.strategy: no strategy is called '{name}'. Did you mean '{near}")
    assert "Known: auto, ddp, fsdp1, fsdp2, zero2, zero3" in error


@pytest.mark.parametrize("name", ["auto", "ddp", "fsdp1", "fsdp2", "zero2", "zero3"])
def test_ours_and_lightnings_are_known(name):
    check_strategy(name)
    assert name == "auto" or name in StrategyRegistry


def test_registering_again_changes_nothing():
    register_strategies()
    before = list(StrategyRegistry)
    register_strategies()
    assert list(StrategyRegistry) == before


def test_deepspeed_that_is_missing_is_said_with_its_extra(monkeypatch):
    monkeypatch.setattr("rlhf_lightning.strategies.deepspeed.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"zero3 needs DeepSpeed.*pip install 'rlhf-lightning\[deepspeed\]'"):
        strategy_named("zero3")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("zero2", {"stage": 1}, "stage must be 2 or 3, got 1"),
        ("fsdp1", {"sharding_strategy": "NO_SHARD"}, "'NO_SHARD'.*FULL_SHARD"),
    ],
)
def test_settings_that_cannot_be(name, settings, message):
    with pytest.raises(ConfigError, match=message):
        strategy_named(name, **settings)


def test_lightnings_own_kind_is_refused_for_ours():
    with pytest.raises(ConfigError, match=r"FSDPStrategy cannot train these modules; take fsdp1"):
        sharding_of(FSDPStrategy())
    assert not sharding_of(DDPStrategy()).is_sharded
    assert sharding_of(strategy_named("fsdp2")).is_sharded


def test_a_lock_that_a_killed_build_left_is_named(tmp_path):
    lock = tmp_path / "py311_cpu" / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_left_locks(tmp_path)
    lock.touch()
    with pytest.warns(UserWarning, match=f"{lock} is there.*delete it"):
        warn_of_left_locks(tmp_path)
