"""`python -m kernels.plots FOLDER`: the figure of a benchmark's table: each way against what the GPU can do, and what
rerouting adds to an expert layer."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd

from kernels.timing import AGAIN

PANELS = {
    "reroute": ("of_copy", "Rerouting: bytes/s over those of a plain pass"),
    "feed-forward": ("of_copy", "Feed-forward: weight bytes/s over those of a plain pass"),
    "feed-forward product": ("of_product", "Feed-forward: flop/s of real rows over those of a large product"),
    "layer": ("over_first", "Expert layer: time over that without rerouting"),
}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#666666")
"""Okabe and Ito's, told apart by everyone."""


def draw(table: pd.DataFrame, provenance: dict, path: Path) -> None:
    """Four panels over the number of tokens; bars from p10 to p90 where ways are compared replay by replay."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(11, 7), constrained_layout=True)
    for axis, (panel, (column, title)) in zip(axes.flat, PANELS.items(), strict=True):
        rows = table[(table["kernel"] == panel.split(" ")[0]) & ~table["way"].str.endswith(f" {AGAIN}")]
        for (way, mine), colour in zip(rows.groupby("way", sort=False), COLOURS, strict=False):
            tokens = mine["shape"].str.extract(r"^(\d+)")[0].astype(int)
            spread = None
            if column == "over_first":
                spread = [mine["over_first"] - mine["over_p10"], mine["over_p90"] - mine["over_first"]]
            axis.errorbar(
                tokens, mine[column], yerr=spread, color=colour, marker="o", markersize=4, label=str(way), capsize=3
            )
        axis.set_xscale("log", base=2)
        ticks = sorted(rows["shape"].str.extract(r"^(\d+)")[0].astype(int).unique())
        axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks], rotation=30)
        axis.margins(y=0.3)  # room for the legend
        axis.set_xlabel("tokens")
        axis.set_title(title, loc="left", fontsize=10)
        axis.axhline(1.0, color="#999999", linewidth=0.8)
        if column != "over_first":
            axis.set_ylim(0, 1.1)
        axis.legend(frameon=False, fontsize=8)
    ceilings = provenance["ceilings"]
    figure.suptitle(
        f"{provenance['gpu']}: {ceilings['bytes_per_s'] / 1e12:.2f} TB/s read and written, "
        f"{ceilings['flop_per_s'] / 1e12:.0f} TFLOP/s in bf16 ({provenance['time']})",
        x=0.01, ha="left",
    )  # fmt: skip
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or not (Path(arguments[0]) / "bench.csv").is_file():
        sys.stderr.write("usage: python -m kernels.plots FOLDER, the one that kernels.bench wrote bench.csv to\n")
        return 2
    folder = Path(arguments[0])
    draw(pd.read_csv(folder / "bench.csv"), json.loads((folder / "provenance.json").read_text()), folder / "bench.png")
    sys.stdout.write(f"{folder / 'bench.png'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
