"""The machine that a benchmark ran on: processor, cores, versions, and how fast it multiplies matrices."""

import os
import platform
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["machine", "matmul_rate"]


def machine(packages: Sequence[str] = ("torch", "pyro-ppl", "pyrovae")) -> dict[str, str | int]:
    """Processor, cores, threads and versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count() or 0,
        "threads": int(os.environ.get("OMP_NUM_THREADS", "0")),
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
    }


def matmul_rate(device: str = "cpu", size: int = 1024, repeats: int = 10) -> float:
    """Floating-point operations per second of a square float32 product, the best of some, with torch's threads."""
    import torch

    a, b = torch.randn(2, size, size, device=device)
    out = torch.empty_like(a)
    best = float("inf")
    for _ in range(repeats + 1):
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        float(out[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"
