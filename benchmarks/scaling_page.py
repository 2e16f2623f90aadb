"""Measured costs carried to 10^8 data on a cluster: hours, bytes moved, and what saturates first."""

from typing import Any

__all__ = ["page"]

NUM_DATA, EPOCHS, DATA_DIM = 10**8, 10, 784
CORES = (1, 100, 1000, 10_000)
LOCAL_BATCHES = (64, 256, 1024, 4096)
NETWORKS = {"10 Gb/s": 1.25e9, "100 Gb/s": 12.5e9}
"""Bytes a second of one rank; all that is assumed and not measured, with a disk of that speed for all together."""
DISK = 1e10
HOUR = 3600.0


def page(rows: list[dict[str, Any]]) -> list[str]:
    """The page as lines of markdown.

    Training is taken at its measured time a datum for the local batch, plus an all-reduce of the gradients a step, two
    times the weights in float32 each way (a ring); auditing as perfectly parallel, which its blocks are.
    """
    train = _centre(rows, "train")
    audit = _centre(rows, "audit")
    return [*_training(train), "", *_auditing(audit), "", *_verdict(train, audit)]


def _centre(rows: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    own = [
        row
        for row in rows
        if row["kind"] == kind and row["axis"] == "data_dim" and row["data_dim"] == DATA_DIM
    ]
    return own[0]


def _training(train: dict[str, Any]) -> list[str]:
    seconds, gradient_bytes = train["us_per_datum"] * 1e-6, 2 * 4 * train["num_weights"]
    lines = [
        f"# {NUM_DATA:.0e} data on a cluster",
        "",
        f"From {train['us_per_datum']:.0f} µs a datum and step on one core, {train['num_weights']:,} weights, hence "
        f"{gradient_bytes / 1e6:.1f} MB that each rank sends a step; {EPOCHS} epochs. Networks and disks are assumed.",
        "",
        "| cores | rows a core and step | compute, h | network at 10 Gb/s, h | at 100 Gb/s, h | bound by |",
        "|---|---|---|---|---|---|",
    ]
    for cores in CORES:
        for local in LOCAL_BATCHES[1:] if cores > 1 else (64,):
            compute = NUM_DATA * EPOCHS * seconds / cores / HOUR
            steps = NUM_DATA * EPOCHS / (cores * local)
            slow, fast = (
                0.0 if cores == 1 else steps * gradient_bytes / rate / HOUR for rate in NETWORKS.values()
            )
            bound = (
                "network, at either speed"
                if fast > compute
                else "network at 10 Gb/s"
                if slow > compute
                else "compute"
            )
            lines.append(f"| {cores:,} | {local:,} | {compute:.3g} | {slow:.3g} | {fast:.3g} | {bound} |")
    return lines


def _auditing(audit: dict[str, Any]) -> list[str]:
    lines = [
        f"The audit takes {audit['ms_per_datum']:.0f} ms a datum on one core and leaves "
        f"{audit['bytes_per_datum'] / 1e3:.0f} kB of results, draws included.",
        "",
        "| data audited | cores | hours | results | read | written at 10 GB/s, h |",
        "|---|---|---|---|---|---|",
    ]
    for count in (10**4, 10**6, NUM_DATA):
        for cores in CORES[1:3] if count < NUM_DATA else CORES[2:]:
            hours = count * audit["ms_per_datum"] * 1e-3 / cores / HOUR
            size = count * audit["bytes_per_datum"]
            read = count * DATA_DIM * 4
            cells = (
                f"{count:.0e}",
                f"{cores:,}",
                f"{hours:.3g}",
                _size(size),
                _size(read),
                f"{size / DISK / HOUR:.2g}",
            )
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _verdict(train: dict[str, Any], audit: dict[str, Any]) -> list[str]:
    """What saturates first, from the numbers above."""
    seconds, gradient_bytes = train["us_per_datum"] * 1e-6, 8 * train["num_weights"]
    rows = {name: gradient_bytes / rate / seconds for name, rate in NETWORKS.items()}
    said = " and ".join(f"{count:.0f} rows a core at {name}" for name, count in rows.items())
    rate = DATA_DIM * 4 / seconds
    written = audit["bytes_per_datum"] / (1e-3 * audit["ms_per_datum"])
    return [
        f"- Training saturates the network first: below {said}, a step waits for the all-reduce longer than it "
        "computes. Beyond, the global batch grows with the cores, and with it the number of epochs that are needed.",
        f"- Reading is never the limit: a core consumes {rate / 1e6:.0f} MB/s, so that {DISK / rate:.0f} cores share a "
        "disk of 10 GB/s.",
        f"- The audit saturates the disk that takes its draws at {DISK / written:,.0f} cores. With 10^4 data each mean "
        "over data is known to 1 % of its spread over them: auditing all is for those who want a verdict on each.",
    ]


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} PB"
