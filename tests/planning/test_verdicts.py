"""What a plan advises is planned again here: it must make the run fit, and without it the run must not."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from tests.planning.made import big, job, shape

from rlhf_lightning.holdings import Forward, Updates
from rlhf_lightning.planning.job import Lengths, Model
from rlhf_lightning.planning.machines import DEVICES
from rlhf_lightning.planning.memory import peak
from rlhf_lightning.planning.plan import plan
from rlhf_lightning.planning.sharding import FSDP2
from rlhf_lightning.planning.verdict import devices_needed, fits, largest_budget, with_budget

GPU = DEVICES["a100-80gb"]


def glm(**changed):
    models = (Model("policy", "glm", big(), 2, trained=True), Model("reference", "glm", big(), 2))
    given = {
        "updates": Updates(8, 128, 4, 16384, 1, 1024),
        "lengths": Lengths(1024, 1024),
        "on_cpu": False,
        "memory": 80e9,
    }
    return job(*models, **{**given, **changed})


def test_the_largest_budget_fits_and_a_step_more_does_not():
    sharded = glm(strategy="fsdp2", devices=16)
    budget = largest_budget(sharded)
    assert budget is not None
    assert fits(with_budget(sharded, budget)) and not fits(with_budget(sharded, budget + 256))


def test_devices_needed_are_enough_and_half_of_them_are_not():
    sharded = glm(strategy="fsdp2", devices=2, updates=Updates(8, 128, 4, 4096, 1, 1024, True))
    needed = devices_needed(sharded)
    assert needed is not None and needed > 1
    assert fits(sharded.changed(devices=needed)) and not fits(sharded.changed(devices=needed // 2))


def test_ddp_never_fits_however_many_devices():
    assert devices_needed(glm(strategy="ddp", devices=8)) is None


def test_checkpointing_is_advised_where_it_is_enough():
    run = glm(strategy="fsdp2", devices=64)
    assert not fits(run)
    advised = plan(run, GPU).remedies
    assert advised[0].startswith("model.gradient_checkpointing: true")
    assert fits(run.changed(updates=replace(run.updates, checkpointing=True)))


def test_an_advised_budget_fits():
    run = glm(strategy="fsdp2", devices=64)
    said = next(said for said in plan(run, GPU).remedies if "token_budget" in said)
    assert fits(with_budget(run, int(re.search(r"token_budget: (\d+)", said)[1])))


def test_advised_devices_fit():
    run = glm(strategy="fsdp2", devices=2, updates=Updates(8, 128, 4, 4096, 1, 1024, True), memory=60e9)
    said = next(said for said in plan(run, GPU).remedies if said.split()[1] == "devices")
    assert fits(run.changed(devices=int(said.split()[0])))


def test_a_reward_model_for_which_there_is_no_room_is_served_elsewhere():
    scorer = Model("reward_model", "models/orm", big(), 8, scalar=True, late=True, served=True)
    base = glm(strategy="fsdp2", devices=4, updates=Updates(8, 128, 4, 2048, 1, 1024, True), memory=60e9)
    run = base.changed(models=(*base.models, scorer), forwards=(Forward("score", "reward_model", False),))
    assert fits(base) and not fits(run)
    assert any("rlhf serve-rm" in said and "models/orm" in said for said in plan(run, GPU).remedies)


def test_changes_that_are_needed_together_are_told_together_and_none_in_vain():
    scorer = Model("reward_model", "models/orm", big(), 8, scalar=True, late=True, served=True)
    base = glm(devices=4, updates=Updates(1, 1, 4, 2048, 1, 1024, True), memory=60e9)  # 4 responses: no more ranks
    forwards = (Forward("score", "reward_model", False),)
    run = base.changed(models=(*base.models, scorer), forwards=forwards)
    (said,) = plan(run, GPU).remedies
    assert said.startswith("together: ") and "fsdp2" in said and "serve models/orm" in said
    assert not fits(run.changed(rule=FSDP2)), "one of them would have been enough"
    assert not fits(base), "the other would have been enough"
    assert fits(base.changed(rule=FSDP2))


def test_what_fits_has_no_advice_and_says_where_its_peak_is():
    made = plan(job(memory=80e9), GPU)
    assert made.fits and made.remedies == []
    assert made.verdict == f"fits: {made.peak.total / 1e9:.1f} of 80.0 GB, in {made.peak.name}"


def test_nothing_helps_where_not_even_the_process_fits():
    assert plan(job(framework=2e9, memory=1e9), GPU).remedies == []


@pytest.mark.parametrize("devices", [1, 8])
def test_cost_is_device_hours_times_price(devices):
    made = plan(job(strategy="fsdp2" if devices > 1 else None, devices=devices, memory=80e9), GPU, price=2.5)
    assert made.cost == pytest.approx(2.5 * devices * sum(w.wall for w in made.work) / 3600)


def test_the_peak_is_the_largest_phase():
    run = job(Model("policy", "here", shape(), 4, trained=True))
    assert peak(run).total == max(phase.total for phase in plan(run, GPU).phases)
