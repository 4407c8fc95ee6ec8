"""Devices as a plan sees them: memory, peak throughput, bandwidths. Public figures, dense, without sparsity."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.registry import check_choice


@dataclass(frozen=True)
class Machine:
    """One device and what joins it to the others.

    Attributes:
        name: Of the device.
        memory: Bytes.
        narrow_flops: Floating-point operations a second in 16 bits.
        wide_flops: As many in float32.
        bandwidth: Bytes a second from its memory.
        interconnect: Bytes a second to other devices, both directions together as makers print it.
        compute_share: Share of the peak that large products reach.
        bandwidth_share: Share of the bandwidth that decoding reaches.
        link_share: Share of the interconnect that collectives reach.
    """

    name: str
    memory: float
    narrow_flops: float
    wide_flops: float
    bandwidth: float
    interconnect: float
    compute_share: float = 0.4
    bandwidth_share: float = 0.6
    link_share: float = 0.4

    @property
    def is_cpu(self) -> bool:
        """Whether it is the CPU of a machine."""
        return self.name == CPU


CPU = "cpu"
_CORE_NARROW, _CORE_WIDE, _CPU_BANDWIDTH = 2.0e11, 8.0e10, 2.0e10

DEVICES: dict[str, Machine] = {
    # NVIDIA A100 datasheet (2021): 312 TFLOPS bf16, 19.5 float32, 1.555 and 2.039 TB/s, NVLink 600 GB/s
    "a100-40gb": Machine("a100-40gb", 40e9, 312e12, 19.5e12, 1.555e12, 600e9),
    "a100-80gb": Machine("a100-80gb", 80e9, 312e12, 19.5e12, 2.039e12, 600e9),
    # NVIDIA H100 datasheet, SXM (2022): 989 TFLOPS bf16 dense, 67 float32, 3.35 TB/s, NVLink 900 GB/s
    "h100-80gb": Machine("h100-80gb", 80e9, 989e12, 67e12, 3.35e12, 900e9),
    # NVIDIA H200 datasheet (2023): as H100, 141 GB at 4.8 TB/s
    "h200-141gb": Machine("h200-141gb", 141e9, 989e12, 67e12, 4.8e12, 900e9),
    # NVIDIA L40S datasheet (2023): 362 TFLOPS bf16 dense, 91.6 float32, 864 GB/s, PCIe 4.0 x16 64 GB/s
    "l40s-48gb": Machine("l40s-48gb", 48e9, 362e12, 91.6e12, 0.864e12, 64e9),
    # AMD Instinct MI300X datasheet (2023): 1307 TFLOPS bf16 dense, 163.4 float32, 5.3 TB/s, 896 GB/s
    "mi300x-192gb": Machine("mi300x-192gb", 192e9, 1307e12, 163.4e12, 5.3e12, 896e9),
}
"""Known devices beside ``cpu``, which is this machine's."""


def machine_named(name: str) -> Machine:
    """A known device; ``cpu`` is this machine: its memory, and its cores at what one of Zen 4 was measured to do.

    Raises:
        ConfigError: If it is not known.
    """
    if name != CPU:
        check_choice(name, [*DEVICES, CPU], "--device")
        return DEVICES[name]
    cores, memory = os.cpu_count() or 1, host_memory()
    flops = (cores * _CORE_NARROW, cores * _CORE_WIDE)
    return Machine(CPU, memory, *flops, _CPU_BANDWIDTH, _CPU_BANDWIDTH, compute_share=0.6)


def host_memory() -> float:
    """Bytes of this machine's main memory, or of what its control group allows this process if that is less."""
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    limits = [_limit(file) for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")]
    return min([total, *(limit for limit in limits if limit)])


def _limit(file: str) -> float | None:
    try:
        with open(file, encoding="utf-8") as stream:  # noqa: PTH123
            text = stream.read().strip()
    except OSError:
        return None
    return float(text) if text.isdigit() else None


_UNITS = {
    "": 1.0,
    "k": 1e3,
    "m": 1e6,
    "g": 1e9,
    "t": 1e12,
    "p": 1e15,
    "ki": 2.0**10,
    "mi": 2.0**20,
    "gi": 2.0**30,
    "ti": 2.0**40,
}
_QUANTITY = re.compile(r"^\s*([0-9.]+(?:e[+-]?\d+)?)\s*([kmgtp]i?)?(?:b|flops?|flop/s)?(?:/s)?\s*$", re.IGNORECASE)


def quantity(text: str, option: str) -> float:
    """``80GB``, ``24GiB``, ``300GB/s``, ``312e12`` or ``312T`` as a number.

    Raises:
        ConfigError: If it is none, or not above 0.
    """
    match = _QUANTITY.match(text)
    value = float(match[1]) * _UNITS[(match[2] or "").lower()] if match else 0.0
    if value <= 0:
        raise ConfigError(f"{option}: {text!r} is no amount; write 80GB, 24GiB, 300GB/s or 312e12")
    return value
