"""Description of the machine and the software, and the precision that the machine suits."""

import importlib.metadata
import os
import platform
from functools import lru_cache
from time import perf_counter

import torch
from packaging.requirements import Requirement

PACKAGES = ("selfpatch", "torch", "torchvision", "timm")
"""Packages whose version a result may depend on."""
NOT_INSTALLED = "not installed"
PROBE = 192
"""Side of the matrices that tell whether a type is emulated."""
EMULATED = 5.0
"""Slowdown above which a type counts as emulated."""


def current_versions() -> dict[str, str]:
    """Return the versions of Python and of `PACKAGES`."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def num_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_name() -> str:
    """Return the name of the CPU, e.g. `AMD EPYC 9B14` or `arm64`."""
    return _cpu_info("model name") or platform.processor() or platform.machine()


def processor_flags() -> set[str]:
    """Return the instruction sets of the CPU as Linux names them; empty on other systems."""
    return set(_cpu_info("flags").split())


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, e.g. `NVIDIA H200`, or of the CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()


def installed_extras() -> dict[str, str]:
    """Return for each extra of the package `installed`, or the packages that it lacks."""
    try:
        extras = importlib.metadata.metadata("selfpatch").get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:  # a checkout on the path
        return {}
    states = {}
    for extra in extras:
        needed = [requirement for requirement in _requirements("selfpatch", extra) if requirement.name != "selfpatch"]
        if needed:  # not other extras alone
            lacking = [package for requirement in needed for package in _lacking(requirement)]
            states[extra] = f"lacks {', '.join(lacking)}" if lacking else "installed"
    return states


def _requirements(package: str, extra: str) -> list[Requirement]:
    """Return what an extra of an installed package adds to its requirements, on this machine."""
    requirements = map(Requirement, importlib.metadata.requires(package) or [])
    return [
        one for one in requirements
        if one.marker and one.marker.evaluate({"extra": extra}) and not one.marker.evaluate({"extra": ""})
    ]  # fmt: skip


def _lacking(requirement: Requirement) -> list[str]:
    """Return the packages that a requirement lacks: its own, else those of its extras, as in `fsspec[http,s3]`."""
    if _version(requirement.name) == NOT_INSTALLED:
        return [requirement.name]
    needed = [one.name for extra in sorted(requirement.extras) for one in _requirements(requirement.name, extra)]
    return [package for package in needed if _version(package) == NOT_INSTALLED]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return NOT_INSTALLED


def _cpu_info(field: str) -> str:
    """Return the first value of a field of /proc/cpuinfo, or an empty string."""
    try:
        with open("/proc/cpuinfo") as file:
            return next((line.partition(":")[2].strip() for line in file if line.startswith(field)), "")
    except OSError:  # not Linux
        return ""


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Return bfloat16 for `bf16`, None for `fp32`, and for `auto` bfloat16 if the device computes it in hardware.

    A CPU that names the instructions may be kept from using them, e.g. by `ONEDNN_MAX_CPU_ISA`: it is measured too.
    """
    fast = precision == "bf16"
    if precision == "auto" and device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    elif precision == "auto" and device.type == "cpu":
        fast = "avx512_bf16" in processor_flags() and not emulates(torch.bfloat16, device)
    return torch.bfloat16 if fast else None


@lru_cache
def slowdown(dtype: torch.dtype, device: torch.device) -> float:
    """Return how many times slower than float32 a device computes a small matrix product of a type; measured once.

    A CPU without units for bfloat16 emulates it, some 30 times slower; one with them is faster than in float32.
    """
    times = {kind: _seconds_of_product(kind, device) for kind in (torch.float32, dtype)}
    return times[dtype] / times[torch.float32]


def emulates(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether a CPU has no fast products of a type; other devices are not measured."""
    return device.type == "cpu" and slowdown(dtype, device) > EMULATED


def precision_warning(precision: str, device: torch.device) -> str | None:
    """Return a warning if `bf16` is asked of a CPU that emulates it, or None."""
    if precision != "bf16" or not emulates(torch.bfloat16, device):
        return None
    times = slowdown(torch.bfloat16, device)
    return f"this CPU computes bf16 {times:.0f} times slower than float32; leave --precision at its default here"


def _seconds_of_product(dtype: torch.dtype, device: torch.device) -> float:
    a, b = (torch.ones(PROBE, PROBE, device=device).to(dtype) for _ in range(2))
    times = []
    for _ in range(5):  # the first ones prepare kernels, and others may be interrupted
        started = perf_counter()
        a @ b
        times.append(perf_counter() - started)
    return max(min(times), 1e-9)
