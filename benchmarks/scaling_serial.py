"""What no rank shares with the others: bytes read of mapped data, the order of an epoch, the noise of a batch."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["DATA_DIM", "serial"]

NUM_DATA, DATA_DIM, BLOCK = 50_000, 784, 32


def serial(folder: Path, num_order: int = 10**8, num_noise: int = 10**7) -> dict[str, Any]:
    """Passes over the data and rows, counted; nanoseconds of processor time, which other processes leave alone.

    Args:
        folder: for a file of 157 MB.
        num_order: data to shuffle.
        num_noise: numbers to draw.
    """
    import torch

    path = folder / "x.npy"
    np.save(path, np.random.default_rng(0).standard_normal((NUM_DATA, DATA_DIM), np.float32))
    return {
        **_reads(f"npy:{path}", folder),
        "order_ns": min(_seconds(partial(torch.randperm, num_order)) for _ in range(2)) / num_order * 1e9,
        "noise_ns": min(_seconds(partial(torch.randn, num_noise)) for _ in range(5)) / num_noise * 1e9,
    }


def _reads(spec: str, folder: Path) -> dict[str, float]:
    """Of `load` with "standardize", an epoch, opening the data again, and a block of an audit."""
    import pyrovae as pv
    from pyrovae.diagnostics.audit import plan_audit
    from pyrovae.diagnostics.audit.shards import audit_shard

    row = DATA_DIM * 4
    with _counted() as load:
        seconds = _seconds(partial(pv.data.load, spec, scale="standardize", memory="map"))
    split = pv.data.load(spec, scale="standardize", memory="map")
    vae = pv.build_vae(DATA_DIM, 2, hidden=(8,))
    with _counted() as epoch:
        pv.fit(vae.model, vae.guide, split.train, max_epochs=1, batch_size=1024, compile=False)
    with _counted() as opening:
        again = pv.data.reopen(spec, split.describe(), memory="map")
    target = partial(pv.Target, vae.model, vae.guide)
    plan = plan_audit(target, again.test, block_size=BLOCK, stages=("weights", "terms"))
    shard = 0, len(plan.blocks) // 4
    own = sum(block.last - block.first for block in plan.blocks if block.number % shard[1] == 0)
    with _counted() as audit:
        audit_shard(plan, folder / "blocks", shard=shard)
    return {
        "load_passes": sum(load) / (NUM_DATA * row),
        "load_bytes_per_second": NUM_DATA * row / seconds,
        "epoch_passes": sum(epoch) / (len(split.train) * row),
        "opening_rows": sum(opening) / row,
        "audit_passes": sum(audit) / (own * row),
    }


@contextmanager
def _counted() -> Iterator[list[int]]:
    """The sizes of all that is read of mapped files within the block."""
    sizes: list[int] = []
    real = os.preadv

    def preadv(*arguments: Any) -> int:
        sizes.append(real(*arguments))
        return sizes[-1]

    os.preadv = preadv
    try:
        yield sizes
    finally:
        os.preadv = real


def _seconds(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start
