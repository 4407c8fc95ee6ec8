"""Tasks whose verifier does what the response says; a module of its own, so that worker processes can import it."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.protocols import Task
from rlhf_lightning.types import Problem


def hang(problem):
    time.sleep(60)


def spin(problem):
    while True:
        pass


def boom(problem):
    raise ValueError("bad answer")


def crash(problem):
    os._exit(3)


def swallow_all(problem):
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(60)


def chatter(problem):
    print("noise on standard output")
    sys.stdout.flush()
    return 1.0


def leave_a_child(problem):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    Path(problem.metadata["pid_file"]).write_text(str(child.pid))
    time.sleep(60)


def misconfigured(problem):
    raise ConfigError("math-verify is not installed")


ACTIONS = {
    "misconfigured": misconfigured,
    "hang": hang,
    "spin": spin,
    "boom": boom,
    "crash": crash,
    "swallow": swallow_all,
    "chatter": chatter,
    "leave_a_child": leave_a_child,
    "nan": lambda problem: float("nan"),
    "text": lambda problem: "no number",
    "pid": lambda problem: float(os.getpid()),
}


class Obedient(Task):
    """Does what the response names, or else gives the response as a number."""

    name = "obedient"

    def train_problems(self):
        return [Problem("p", "q")]

    def held_out_problems(self):
        return [Problem("h", "q")]

    def verify(self, problem, response):
        action = ACTIONS.get(response)
        return float(response) if action is None else action(problem)


class Trusted(Obedient):
    name = "trusted"
    trusted_fast = True


class Unimportable(Obedient):
    """Pickles here, and fails to unpickle anywhere."""

    def __reduce__(self):
        return _fail, ()


def _fail():
    raise ImportError("no module of that name over here")
