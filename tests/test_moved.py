"""Old paths go on working: each entry of the table leads to what it names, and nothing else is served."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from rlhf_lightning import _moved


@pytest.mark.parametrize("old", _moved.MODULES)
def test_old_modules_give_what_is_in_the_new_ones(old):
    new = importlib.import_module(f"rlhf_lightning.{_moved.MODULES[old]}")
    shim = importlib.import_module(f"rlhf_lightning.{old}")
    shown = [name for name in vars(new) if not name.startswith("_") and f"{old}.{name}" not in _moved.NAMES]
    assert shown
    assert all(getattr(shim, name) is getattr(new, name) for name in shown)
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = shim.no_such_thing


@pytest.mark.parametrize("old", _moved.NAMES)
def test_old_names_are_what_they_are_called_now(old):
    before, now = (path.rpartition(".") for path in (old, _moved.NAMES[old]))
    wanted = getattr(importlib.import_module(f"rlhf_lightning.{now[0]}"), now[2])
    assert getattr(importlib.import_module(f"rlhf_lightning.{before[0]}"), before[2]) is wanted


def test_the_table_names_nothing_private_and_no_place_that_has_moved_on():
    paths = [*_moved.MODULES, *_moved.NAMES]
    assert not [path for path in paths if any(part.startswith("_") for part in path.split("."))]
    assert not {new for new in _moved.MODULES.values() if new in _moved.MODULES}
    assert not {new for new in _moved.NAMES.values() if new in _moved.NAMES or new.rpartition(".")[0] in _moved.MODULES}


def test_old_paths_in_the_usual_forms():
    code = (
        "import sys, rlhf_lightning; loaded = set(sys.modules)\n"
        "assert 'torch' not in loaded and not any(n.startswith('rlhf_lightning.algorithms') for n in loaded)\n"
        "from rlhf_lightning.advantages.group import Group\n"
        "import rlhf_lightning.losses.clip\n"
        "from rlhf_lightning import kl, transforms\n"
        "from rlhf_lightning.metrics import *\n"
        "import rlhf_lightning as rl, pickle\n"
        "assert pickle.loads(b'crlhf_lightning.advantages.group\\nGroup\\n.') is Group is rl.advantages.Group\n"
        "assert rlhf_lightning.losses.clip.Clip is rl.losses.Clip and Means is rl.metrics.Means\n"
        "assert transforms.Clip is rl.transforms.ClipRewards and kl.KLTerm is rl.kl.KLTerm\n"
        "try: import rlhf_lightning.advantages.nothing\n"
        "except ModuleNotFoundError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "No module named 'rlhf_lightning.advantages.nothing'\n", done.stderr
