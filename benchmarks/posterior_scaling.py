"""Time and memory of pyrovae's reference posteriors against data, chains, latent and data dimension, with slopes."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["CENTRE", "SWEEPS", "scaling", "slopes"]

CENTRE = {"num_data": 64, "num_chains": 8, "latent_dim": 16, "data_dim": 784}
SWEEPS = {
    "num_data": (16, 64, 256, 1024),
    "num_chains": (2, 8, 32),
    "latent_dim": (4, 16, 64),
    "data_dim": (196, 784, 3136),
}
DENSITIES = ("collapsed", "generic")
NUM_SAMPLES, WARMUP_STEPS = 40, 40
KEYS = ("ms_per_gradient", "ms_per_draw", "mib")


def scaling(env: dict[str, str]) -> list[dict[str, Any]]:
    """One new process a point, on untrained decoders and draws of their own."""
    points: list[dict[str, Any]] = []
    seen: dict[str, dict[str, Any]] = {}
    for name, values in SWEEPS.items():
        for value in values:
            for density in DENSITIES:
                if name != "data_dim" and density == "generic":
                    continue
                point = {**CENTRE, name: value, "density": density}
                key = json.dumps(point)
                seen[key] = seen.get(key) or _run(key, env)
                points.append({"axis": name, **point, **seen[key]})
    return points


def _run(point: str, env: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--point", point]
    out = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def slopes(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """d log(y) / d log(axis) by least squares, for y the time of a gradient of all rows, of a draw, and the memory."""
    found = []
    for name in SWEEPS:
        for density in DENSITIES:
            some = [p for p in points if p["axis"] == name and p["density"] == density]
            if len(some) < 2:
                continue
            x = np.log([p[name] for p in some])
            fits = {key: float(np.polyfit(x, np.log([p[key] for p in some]), 1)[0]) for key in KEYS}
            found.append({"axis": name, "density": density, "slopes": fits, "points": some})
    return found


def _measure(point: dict[str, Any]) -> dict[str, float]:
    import torch
    from posterior_ours import undiagnosed
    from posterior_rows import confine

    import pyrovae as pv

    confine()
    sizes = point["data_dim"], point["latent_dim"]
    vae = pv.build_vae(*sizes, hidden=(400,), noise="fixed", scale=0.5, seed=0)
    torch.manual_seed(0)
    with torch.no_grad():
        x = vae.decoder(torch.randn(point["num_data"], point["latent_dim"])).sample()
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text(
        "5"
    )  # resets VmHWM: what was loaded and drawn before does not count
    target = pv.Target(vae.model, vae.guide, x, prepare=point["density"] == "collapsed")
    seconds, num_gradients = undiagnosed(target, point["num_chains"], NUM_SAMPLES, WARMUP_STEPS)
    return {
        "seconds": seconds.warmup + seconds.draws,
        "ms_per_gradient": 1e3 * seconds.draws / num_gradients,
        "ms_per_draw": 1e3 * seconds.draws / NUM_SAMPLES,
        "mib": _memory("VmHWM") - before,
    }


def _memory(name: str) -> float:
    """VmRSS, the resident memory, or VmHWM, its largest since it was last reset, in MiB; of Linux."""
    status = Path("/proc/self/status").read_text()
    return float(status.partition(f"{name}:")[2].split()[0]) / (1 << 10)


def main() -> None:
    """One point, printed as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--point", type=json.loads, required=True)
    print(json.dumps(_measure(parser.parse_args().point)))


if __name__ == "__main__":
    main()
