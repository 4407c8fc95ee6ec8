import json
import subprocess
import sys

import pytest

from rlhf_lightning.data.order import PromptOrder, derive_seed


def test_each_epoch_is_a_fresh_permutation():
    order = PromptOrder(7, seed=3)
    epochs = [order.take(7 * e, 7) for e in range(20)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 15
    assert epochs[4] == order.epoch(4)


def test_any_stretch_is_a_part_of_one_endless_order():
    whole = PromptOrder(5, seed=1).take(0, 40)
    for start in range(30):
        assert PromptOrder(5, seed=1).take(start, 10) == whole[start : start + 10]


def test_the_seed_decides():
    assert PromptOrder(50, seed=1).take(0, 50) == PromptOrder(50, seed=1).take(0, 50)
    assert PromptOrder(50, seed=1).take(0, 50) != PromptOrder(50, seed=2).take(0, 50)


def test_an_order_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one item"):
        PromptOrder(0, seed=1)


def test_seeds_are_the_same_in_another_process_and_all_apart():
    parts = [("a", 1), ("a", 2), ("b", 1), (1, 2), (12,), ("1", 2), ()]
    code = "import json, sys; from rlhf_lightning.data.order import derive_seed; "
    code += f"print(json.dumps([derive_seed(*p) for p in {parts!r}]))"
    there = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    here = [derive_seed(*p) for p in parts]
    assert here == there
    assert len(set(here)) == len(parts)
    assert all(0 <= seed < 2**31 for seed in here)
