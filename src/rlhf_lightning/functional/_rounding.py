"""What the last digits of a result hang on besides the numbers that go in: the processor, its library, the threads.

Promised: the same program on the same kind of processor, with the same libraries, settings and number of threads, gives
the same bits, wherever tensors lie in memory and whatever else the machine does.

- PyTorch lets every tensor begin at a multiple of 64 bytes on CPU, so an operation finds its rows aligned alike in each
  run. Intel's MKL promises equal results for equal alignment only if it is asked to; for Intel's own processors it is
  asked to as this package is imported (``MKL_CBWR=AUTO,STRICT``, which then holds for any alignment). Seen to cost
  nothing on a Xeon with AVX-512. On other makers' processors the setting would put MKL on its slowest path, so it is
  left out there. What the user has set stands. ``MKL_CBWR=AVX2,STRICT`` makes Intel's processors of several generations
  agree as well, at less than half the speed.
- Another number of threads, instruction set or version of PyTorch sums in another order: equal up to rounding, no more.
  A checkpoint keeps what it was computed with, and a run that goes on from it otherwise says so.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path

import torch

REPEATABLE = {"MKL_CBWR": "AUTO,STRICT"}
"""Conditional numerical reproducibility of MKL; read at its first product."""


def is_intel(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor is Intel's own and has the instructions that ``STRICT`` needs (AVX2)."""
    try:
        said = cpuinfo.read_text(errors="replace").partition("\n\n")[0]
    except OSError:
        return "GenuineIntel" in platform.processor()
    return "GenuineIntel" in said and "avx2" in said.split()


def rounding_of_this_process() -> dict[str, str | int]:
    """What equal bits need to be equal besides configuration and seed."""
    return {
        "torch": str(torch.__version__),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "threads": torch.get_num_threads(),
        "MKL_CBWR": os.environ.get("MKL_CBWR", ""),
    }


def differences(here: Mapping[str, object], there: Mapping[str, object]) -> str:
    """What differs, as ``threads: 2 there, 4 here``; "" where nothing does."""
    names = [name for name in there if name in here and here[name] != there[name]]
    return ", ".join(f"{name}: {there[name] or 'not set'} there, {here[name] or 'not set'} here" for name in names)


if torch.backends.mkl.is_available() and is_intel():  # type: ignore[no-untyped-call]
    for _name, _value in REPEATABLE.items():
        os.environ.setdefault(_name, _value)
