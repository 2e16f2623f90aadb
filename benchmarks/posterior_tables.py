"""The tables and the figure of the comparison of samplers, from what was measured."""

from typing import Any

from matplotlib.figure import Figure

__all__ = ["figure", "markdown"]

LABELS = {
    "pyrovae": "pyrovae",
    "numpyro": "NumPyro NUTS, vmap over data and chains",
    "numpyro-loop": "NumPyro NUTS, vectorized chains, a datum at a time",
    "blackjax": "BlackJAX NUTS, vmap over data and chains",
    "pyro": "Pyro NUTS, a chain and a datum at a time",
}
TARGETS = {"numpyro": 10, "blackjax": 10, "pyro": 50}


def markdown(found: dict[str, Any]) -> str:
    """All tables."""
    parts = [_samplers(found), _ratios(found["rows"]), _scaling(found.get("scaling")), _device(found)]
    return "\n".join(part for part in parts if part) + "\n"


def _samplers(found: dict[str, Any]) -> str:
    lines = [
        "| latent dims | data | sampler | density | min ESS/s per datum | with warm-up | with compilation "
        "| ESS per gradient | share of matmul rate | chains x draws | warm-up | R-hat | largest \\|z\\| |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        measured = "" if row["num_measured"] == row["num_data"] else f" ({row['num_measured']} run)"
        label = LABELS[row["sampler"]] + (", all cores" if row["threads"] != "one" else "")
        label += ", dense mass" if row["dense"] else ""
        cells = [
            row["latent_dim"],
            f"{row['num_data']}{measured}",
            label,
            row["density"],
            *(f"{row[key]:.3g}" for key in ("rate", "rate_total", "rate_compiled", "ess_per_gradient")),
            f"{row['share_of_matmul']:.0%}" if "share_of_matmul" in row else "",
            f"{row['num_chains']} x {row['num_samples']}",
            row["warmup_steps"],
            *("" if row.get(key) is None else f"{row[key]:.3g}" for key in ("rhat", "largest_z")),
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """pyrovae as it comes, with the collapsed density, over each peer on the generic and on the same density."""
    found = []
    for peer in rows:
        if peer["sampler"] == "pyrovae" or peer["threads"] != "one":
            continue
        same = [
            row
            for row in rows
            if (row["sampler"], row["density"], row["threads"]) == ("pyrovae", "collapsed", "one")
            and all(row[key] == peer[key] for key in ("latent_dim", "num_data"))
        ]
        for row in same:
            keys = {"after": "rate", "total": "rate_total", "compiled": "rate_compiled"}
            over = {name: row[key] / peer[key] for name, key in keys.items()}
            where = {key: peer[key] for key in ("sampler", "density", "latent_dim", "num_data")}
            found.append({**where, **over})
    return found


def _ratios(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| latent dims | data | pyrovae over | on its density | after warm-up | with warm-up | with compilation "
        "| aimed at |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in ratios(rows):
        is_aim = (row["density"], row["latent_dim"], row["num_data"]) == ("generic", 20, 16)
        aim = f"{TARGETS[row['sampler']]}" if is_aim and row["sampler"] in TARGETS else ""
        numbers = " | ".join(f"{row[key]:.3g}" for key in ("after", "total", "compiled"))
        lines.append(
            f"| {row['latent_dim']} | {row['num_data']} | {LABELS[row['sampler']]} | {row['density']} | {numbers} "
            f"| {aim} |"
        )
    return "\n".join(lines) + "\n"


def _scaling(groups: list[dict[str, Any]] | None) -> str:
    if not groups:
        return ""
    names = {"num_data": "data", "num_chains": "chains", "latent_dim": "latent dims", "data_dim": "data dims"}
    lines = [
        "| against | density | values | ms per gradient of all rows | slope | ms per draw of all rows | slope | MiB "
        "| slope |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for group in groups:
        points, fits = group["points"], group["slopes"]
        cells = [names[group["axis"]], group["density"], ", ".join(str(p[group["axis"]]) for p in points)]
        for key in ("ms_per_gradient", "ms_per_draw", "mib"):
            cells += [", ".join(f"{p[key]:.3g}" for p in points), f"{fits[key]:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _device(found: dict[str, Any]) -> str:
    rows = found.get("throughput", [])
    lines = ["| device | density | N x C rows | draws per second | over one core |", "|---|---|---|---|---|"]
    slow = {(r["density"], r["rows"]): r["draws_per_second"] for r in rows if r["device"] == "cpu"}
    for row in rows:
        base = slow.get((row["density"], row["rows"]))
        ratio = "not measured" if base is None else f"{row['draws_per_second'] / base:.3g}"
        cells = (row["device"], row["density"], row["rows"], f"{row['draws_per_second']:.3g}", ratio)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    if all(row["device"] == "cpu" for row in rows):
        lines.append("| GPU | | 1000, 10000, 100000 | not measured | |")
    return "\n".join(lines) + "\n"


def figure(rows: list[dict[str, Any]], num_data: int) -> Figure:
    """Effective draws per second of one posterior, by sampler and latent dimension, for runs with `num_data` data."""
    rows = [row for row in rows if row["threads"] == "one" and row["num_data"] == num_data]
    dims = sorted({row["latent_dim"] for row in rows})
    names = [name for name in reversed(LABELS) if any(row["sampler"] == name for row in rows)]
    drawn = Figure(figsize=(9, 0.8 + 0.45 * len(names)), layout="constrained")
    axes = drawn.subplots(1, len(dims), sharex=True, sharey=True, squeeze=False)[0]
    for ax, dim in zip(axes, dims, strict=True):
        for density, style in (("generic", "o"), ("collapsed", "D")):
            some = [row for row in rows if (row["latent_dim"], row["density"]) == (dim, density)]
            heights = [names.index(row["sampler"]) for row in some]
            colours = ["C1" if row["sampler"] == "pyrovae" else "C0" for row in some]
            ax.scatter([row["rate"] for row in some], heights, marker=style, c=colours, label=density)
        ax.set(xscale="log", title=f"{dim} latent dimensions", xlabel="min ESS/s per datum")
        ax.grid(axis="x", alpha=0.3)
        ax.margins(y=0.2)
    axes[0].set_yticks(range(len(names)), [LABELS[name].replace(", ", "\n", 1) for name in names])
    axes[-1].legend(frameon=False, fontsize=8)
    return drawn
