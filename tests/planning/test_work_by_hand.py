"""Operations and times of a plan against sums made by hand."""

from __future__ import annotations

import pytest
from tests.planning.made import big, job, shape

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.holdings import Decoding, Forward, Updates
from rlhf_lightning.planning.job import Lengths, Model
from rlhf_lightning.planning.machines import DEVICES, Machine, machine_named, quantity
from rlhf_lightning.planning.work import epoch, forward_flops, rollout_flops, update_flops

# a layer of the small Llama: q 64·64, k and v 64·32 each, o 64·64, the MLP's three 64·160
LAYER = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 160
LAYERS, HEAD, QUERIES = 3, 512 * 64, 64
MACHINE = Machine("made up", 1e9, 1e12, 1e11, 1e10, 1e9, 0.5, 0.5, 0.5)


def run(**changed):
    given = {"updates": Updates(2, 4, 2, 4096, 1, 64), "lengths": Lengths(8, 17)}
    return job(**{**given, **changed})


def test_a_forward_pass_by_hand():
    """Eight groups: a prompt of 8 once, two responses whose 16 tokens stand in the row."""
    tokens, responses = 8 * (8 + 2 * 16), 8 * 2 * 16
    keys = 8 * (8 * 8 / 2 + 2 * 16 * (8 + 16 / 2))
    wanted = 2 * LAYERS * LAYER * tokens + 2 * HEAD * responses + 4 * QUERIES * LAYERS * keys
    assert forward_flops(run(), run().policy, logits=True) == wanted


def test_an_update_is_three_passes_four_with_checkpointing_two_under_adapters():
    once = forward_flops(run(), run().policy, logits=True) / 2
    checkpointed = run(updates=Updates(2, 4, 2, 4096, 1, 64, True))
    adapted = run()
    adapted = adapted.changed(models=(Model("policy", "here", shape(), 4, trained=True, rank=4),))
    assert [update_flops(j) / once for j in (run(), checkpointed, adapted)] == [3, 4, 2]


def test_a_rollout_by_hand():
    read = 8 * (2 * LAYERS * LAYER * 8 + 4 * QUERIES * LAYERS * 8 * 8 / 2)
    drawn = 8 * 2 * 17 * (2 * (LAYERS * LAYER + HEAD) + 4 * QUERIES * LAYERS * (8 + 17 / 2))
    assert rollout_flops(run()) == read + drawn


def test_decoding_waits_for_the_memory():
    """One sequence: each of its 17 steps reads all weights and the cache so far, at half of 1e10 bytes a second."""
    alone = run(updates=Updates(1, 1, 1, 4096, 1, 64), decoding=Decoding(17, 1), forwards=())
    work = epoch(alone, MACHINE)[0]
    cache = 2 * LAYERS * 32 * 4 * (8 + 17 / 2)
    assert work.phase == "rollout" and work.bound == "memory bandwidth"
    assert work.seconds == pytest.approx(17 * (4 * (LAYERS * LAYER + HEAD) + cache) / 5e9)


def test_more_devices_share_the_work_and_talk():
    single, many = (epoch(run(strategy=s, devices=n), MACHINE)[-1] for s, n in ((None, 1), ("fsdp2", 4)))
    assert many.flops == single.flops and many.seconds == pytest.approx(single.seconds / 4)
    assert single.traffic == 0 and many.traffic > 0


def test_a_rollouts_passes_are_all_there():
    exact = run(forwards=(Forward("reference", "policy", True),))
    assert [w.phase for w in epoch(exact, MACHINE)] == ["rollout", "reference", "update"]
    mixed = exact.changed(autocast=2)
    assert [w.phase for w in epoch(mixed, MACHINE)] == ["rollout", "reference", "old log-probs", "update"]


def test_a_9b_on_an_a100():
    """9.4 B weights less embedding and head (0.62 B each) over 0.5 M prompt and 0.5 M response tokens, three times."""
    many = run(updates=Updates(1, 500, 1, 16384, 1, None), lengths=Lengths(1000, 1001), autocast=2)
    glm = many.changed(models=(Model("policy", "glm", big(), 4, trained=True),), forwards=())
    update = epoch(glm, DEVICES["a100-80gb"])[-1]
    products = 2 * (9.4e9 - 2 * 0.62e9) * 1e6
    assert 3 * products < update.flops < 3 * 1.05 * products  # and attention over a thousand keys
    assert update.seconds == pytest.approx(update.flops / (0.4 * 312e12))


@pytest.mark.parametrize(
    ("text", "value"),
    [("80GB", 80e9), ("24GiB", 24 * 2**30), ("300GB/s", 3e11), ("312e12", 3.12e14), ("2TB/s", 2e12), ("1.5 T", 1.5e12)],
)
def test_amounts(text, value):
    assert quantity(text, "--x") == value


@pytest.mark.parametrize("text", ["much", "0GB", "-3GB", "80 apples"])
def test_what_is_no_amount(text):
    with pytest.raises(ConfigError, match="--memory"):
        quantity(text, "--memory")


def test_an_unknown_device_names_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'h100-80gb'"):
        machine_named("h100-80g")
