"""Measured costs carried to 10^8 data on a cluster: hours, bytes moved, and what saturates first."""

from typing import Any

__all__ = ["page"]

NUM_DATA, EPOCHS, DATA_DIM, LATENT_DIM, BATCH = 10**8, 10, 784, 16, 64
ROW_BYTES = 4 * DATA_DIM
CORES = (1, 100, 1000, 10_000)
LOCAL_BATCHES = (64, 256, 1024, 4096)
NETWORKS = {"10 Gb/s": 1.25e9, "100 Gb/s": 12.5e9}
"""Bytes a second of one rank; all that is assumed and not measured, with a disk of that speed for all together."""
DISK = 1e10
HOUR = 3600.0
COMPUTE, STEPS, SERIAL, READING = "compute", "steps of several ranks", "order and noise", "disk"


def page(results: dict[str, Any]) -> list[str]:
    """The page as lines of markdown.

    Training is taken at its measured time a datum, plus what a step of several ranks was measured to cost, plus an
    all-reduce of the gradients a step, two times the weights in float32 each way (a ring), plus what each rank does for
    all data; auditing as perfectly parallel, which its blocks are.
    """
    rows, serial = results["rows"], results["serial"]
    train, audit = _centre(rows, "train"), _centre(rows, "audit")
    step = _step_seconds(rows)
    layouts = _layouts(train, serial, step)
    lines = [
        *_assumed(train, serial, step),
        "",
        _pair_said(rows),
        "",
        *_training(layouts),
        "",
        *_start(serial),
    ]
    return [*lines, "", *_auditing(audit, serial), "", *_verdict(layouts, train, audit, serial)]


def _centre(rows: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    own = [
        row
        for row in rows
        if row["kind"] == kind and row["axis"] == "data_dim" and row["data_dim"] == DATA_DIM
    ]
    return own[0]


def _pair(rows: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Training in one process and in two."""
    own = {r["processes"]: r for r in rows if (r["kind"], r["axis"]) == ("train", "processes")}
    return own[1], own[2]


def _pair_said(rows: list[dict[str, Any]]) -> str:
    one, two = _pair(rows)
    return (
        f"Two processes shared batches of {BATCH} on two cores: {two['us_per_datum']:.0f} µs a datum against "
        f"{one['us_per_datum']:.0f} in one, and the first grew by {two['mib']:,.0f} MiB against {one['mib']:.0f}. With "
        "so few rows a core more processes are slower; what the memory goes into was not looked into. At 10^8 data "
        "each rank holds the order of an epoch and the rows of the parts besides, 0.8 GB each."
    )


def _step_seconds(rows: list[dict[str, Any]]) -> float:
    """What a step of two ranks takes beyond half of the computation of one."""
    one, two = (1e-6 * BATCH * row["us_per_datum"] for row in _pair(rows))
    return two - one / 2


def _layouts(train: dict[str, Any], serial: dict[str, Any], step: float) -> list[dict[str, Any]]:
    """Hours of training by what takes them, for some numbers of cores and rows a core."""
    count = NUM_DATA * EPOCHS
    seconds, gradient_bytes = train["us_per_datum"] * 1e-6, 8 * train["num_weights"]
    noise = LATENT_DIM * serial["noise_ns"]
    found = []
    for cores in CORES:
        for local in LOCAL_BATCHES[1:] if cores > 1 else (BATCH,):
            steps = count / (cores * local) if cores > 1 else 0.0
            hours = {
                COMPUTE: count * seconds / cores,
                STEPS: steps * step,
                SERIAL: count * 1e-9 * (serial["order_ns"] + (noise if cores > 1 else 0.0)),
                READING: count * ROW_BYTES / DISK,
                **{name: steps * gradient_bytes / rate for name, rate in NETWORKS.items()},
            }
            hours = {name: value / HOUR for name, value in hours.items()}
            found.append({"cores": cores, "local": local, **hours, "bound": _bound(hours)})
    return found


def _bound(hours: dict[str, float]) -> str:
    """What takes longest; a network if it does at 10 Gb/s."""
    slow, fast = (hours[name] for name in NETWORKS)
    most = max((COMPUTE, STEPS, SERIAL, READING), key=lambda name: hours[name])
    if fast > hours[most]:
        return "network, at either speed"
    return "network at 10 Gb/s" if slow > hours[most] else most


def _assumed(train: dict[str, Any], serial: dict[str, Any], step: float) -> list[str]:
    return [
        f"# {NUM_DATA:.0e} data on a cluster",
        "",
        f"Measured and carried on: {train['us_per_datum']:.0f} µs a datum on one core, in steps of {BATCH} data; "
        f"{1e3 * step:.1f} ms that a step of two processes takes beyond half of that, both on one machine; and, which "
        f"every rank does for all data, {serial['order_ns']:.0f} ns a datum for the order of an epoch and "
        f"{serial['noise_ns']:.1f} ns for each of the {LATENT_DIM} numbers of noise of a datum. Assumed: networks, and "
        f"a disk of {_size(DISK)}/s for all ranks that reads single rows of {_size(ROW_BYTES)} at that speed. Not "
        f"measured: how a step's cost grows with the number of ranks; it is taken as that of two. "
        f"{train['num_weights']:,} weights, hence {8 * train['num_weights'] / 1e6:.1f} MB that each rank sends a step; "
        f"{EPOCHS} epochs.",
    ]


def _training(layouts: list[dict[str, Any]]) -> list[str]:
    names = [COMPUTE, STEPS, SERIAL, READING, *(f"network at {name}" for name in NETWORKS)]
    lines = [
        f"| cores | rows a core and step | {', h | '.join(names)}, h | bound by |",
        f"|{'---|' * (len(names) + 3)}",
    ]
    for row in layouts:
        hours = [f"{row[name]:.3g}" for name in (COMPUTE, STEPS, SERIAL, READING, *NETWORKS)]
        lines.append(f"| {row['cores']:,} | {row['local']:,} | {' | '.join(hours)} | {row['bound']} |")
    return lines


def _start(serial: dict[str, Any]) -> list[str]:
    """What comes before the first step."""
    return [
        f"Before the first step one rank reads the data {serial['load_passes']:.2f} times (fingerprint, limits and "
        f'moments for "standardize", all in one pass) and the others wait: {_size(NUM_DATA * ROW_BYTES)} at '
        f"{_size(serial['load_bytes_per_second'])}/s on one core, {_start_hours(serial):.2g} h. An epoch reads the "
        f"rows that it trains on {serial['epoch_passes']:.2f} times. Passes were counted, and these costs of one core "
        "taken in processor time, on 50,000 rows of a mapped npy file, later than the tables above.",
    ]


def _start_hours(serial: dict[str, Any]) -> float:
    return float(serial["load_passes"] * NUM_DATA * ROW_BYTES / serial["load_bytes_per_second"] / HOUR)


def _auditing(audit: dict[str, Any], serial: dict[str, Any]) -> list[str]:
    passes, opening = serial["audit_passes"], serial["opening_rows"]
    lines = [
        f"The audit takes {audit['ms_per_datum']:.0f} ms a datum on one core and leaves "
        f"{audit['bytes_per_datum'] / 1e3:.0f} kB of results, draws included. A shard reads its own rows "
        f"{passes:.2f} times, and {opening:.0f} rows to know the data again; nothing is fitted anew. One shard a core:",
        "",
        "| data audited | cores | hours | results | read by all | read by a shard | written at 10 GB/s, h |",
        "|---|---|---|---|---|---|---|",
    ]
    for count in (10**4, 10**6, NUM_DATA):
        for cores in CORES[1:3] if count < NUM_DATA else CORES[2:]:
            hours = count * audit["ms_per_datum"] * 1e-3 / cores / HOUR
            size = count * audit["bytes_per_datum"]
            read = (count / cores * passes + opening) * ROW_BYTES
            cells = (
                f"{count:.0e}",
                f"{cores:,}",
                f"{hours:.3g}",
                _size(size),
                _size(read * cores),
                _size(read),
                f"{size / DISK / HOUR:.2g}",
            )
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _verdict(
    layouts: list[dict[str, Any]], train: dict[str, Any], audit: dict[str, Any], serial: dict[str, Any]
) -> list[str]:
    """What saturates first, from the numbers above."""
    rate = ROW_BYTES / (1e-6 * train["us_per_datum"])
    written = audit["bytes_per_datum"] / (1e-3 * audit["ms_per_datum"])
    read = serial["audit_passes"] * ROW_BYTES / (1e-3 * audit["ms_per_datum"])
    start = _start_hours(serial)
    return [
        f"- Training, by the table: {_bounds(layouts)}. The global batch grows with the cores, and with it the number "
        "of epochs that are needed.",
        f"- The pass before the first step, {start:.2g} h, takes longer than the computation from "
        f"{layouts[0][COMPUTE] / start:.0f} cores on.",
        f"- Reading limits training, not the audit: a core that trains consumes {_size(rate)}/s, so that "
        f"{DISK / rate:.0f} cores share a disk of 10 GB/s; one that audits consumes {_size(read)}/s.",
        f"- The audit saturates the disk that takes its draws at {DISK / written:,.0f} cores. With 10^4 data each mean "
        "over data is known to 1 % of its spread over them: auditing all is for those who want a verdict on each.",
    ]


def _bounds(layouts: list[dict[str, Any]]) -> str:
    """Each bound of the table with the layouts that it holds for."""
    found: dict[str, dict[int, list[str]]] = {}
    for row in layouts:
        found.setdefault(row["bound"], {}).setdefault(row["cores"], []).append(f"{row['local']:,}")
    parts = []
    for bound, cores in found.items():
        places = [
            f"{count:,} core{'s' if count > 1 else ''} with {' or '.join(local)} rows each"
            for count, local in cores.items()
        ]
        parts.append(f"{bound} is the bound at {', '.join(places)}")
    return "; ".join(parts)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} PB"
