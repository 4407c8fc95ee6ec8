"""``import rlhf_lightning as rl``: everything that one trains with, and nothing imported before it is asked for."""

import subprocess
import sys

import pytest

import rlhf_lightning as rl


def test_the_package_itself_is_light():
    script = (
        "import sys, rlhf_lightning as rl; rl.__all__; dir(rl); print(*({'torch', 'lightning'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("name", [name for name in rl.__all__ if name != "__version__"])
def test_each_name_is_there(name):
    assert getattr(rl, name).__name__ == name
    assert name in dir(rl)


def test_names_are_said_once():
    assert set(rl.__all__) == {*rl._PLACE_OF, "__version__"}


def test_packages_and_typing_errors():
    assert rl.advantages.Group.__name__ == "Group"
    with pytest.raises(AttributeError, match=r"no attribute 'GRPOModul'\. Did you mean 'GRPOModule'"):
        rl.GRPOModul  # noqa: B018
