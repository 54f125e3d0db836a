#!/usr/bin/env python3
"""tools/plot_plan.py: draws what `xquant-llm plan --json` wrote: bytes against predicted divergence, the time a step takes as colour.

    plot_plan.py PLAN.json OUT.png

Down and left is better. Filled marks: no other scheme is as good in bytes, time and divergence and better in one of them; hollow
ones are dominated. A line marks the memory that was asked for. Schemes whose divergence is not known, or below 2e-6, are named
below the axes. Needs matplotlib.
"""

import argparse
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.colors import LogNorm
from matplotlib.ticker import FuncFormatter, NullFormatter

LEAST = 2e-6


def load(path):
    try:
        data = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        sys.exit(f"plot_plan.py: {path}: {error}")
    wanted = {"model", "context", "sequences", "memory", "sinks", "schemes"}
    if not isinstance(data, dict) or not wanted <= data.keys():
        sys.exit(f"plot_plan.py: {path}: not what `xquant-llm plan --json` writes")
    return data


def draw(figure, axes, data):
    available = [s for s in data["schemes"] if "unavailable" not in s]
    shown = [s for s in available if s.get("kld", 0) > LEAST]
    if not shown:
        sys.exit("plot_plan.py: no scheme has a divergence to draw")
    mebibytes = [(s["cache"] + s["weights"]) / 2**20 for s in shown]
    axes.set_xscale("log")
    axes.set_yscale("log")
    times = [1e3 * s["seconds"] for s in shown]
    norm = LogNorm(min(times), max(max(times), min(times) * 1.01))
    colours = matplotlib.colormaps["viridis"]
    for s, x, time in zip(shown, mebibytes, times):
        colour = colours(norm(time))
        hollow = bool(s["dominated_by"])
        axes.scatter([x], [s["kld"]], s=46, facecolors="none" if hollow else [colour], edgecolors=[colour], linewidths=1.4,
                     zorder=3)
        axes.annotate(s["name"], (x, s["kld"]), xytext=(6, 3), textcoords="offset points", fontsize=7.5,
                      color="#999999" if hollow else "#222222")
    if data["memory"]:
        axes.axvline(data["memory"] / 2**20, color="#b2182b", linewidth=1, zorder=1)
        axes.text(data["memory"] / 2**20, 0.99, " memory", transform=axes.get_xaxis_transform(), va="top", fontsize=7.5,
                  color="#b2182b")
    axes.set_xlim(min(mebibytes) / 1.15, max(mebibytes) * 1.35)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.tick_params(axis="x", which="both", labelsize=7.5)
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(True, which="major", color="#e5e5e5", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_xlabel("MiB of caches and prepared weights")
    axes.set_ylabel("predicted mean KL divergence (nats)")
    sequences = data["sequences"]
    axes.set_title(f"{Path(data['model']).stem}: {sequences} sequence{'' if sequences == 1 else 's'} of {data['context']:,} tokens",
                   loc="left", fontsize=10)
    bar = figure.colorbar(matplotlib.cm.ScalarMappable(norm, colours), ax=axes, pad=0.01)
    bar.set_label("ms in the cache for a step", fontsize=8)
    left_out = [s["name"] for s in available if s.get("kld", 0) <= LEAST]
    if left_out:
        axes.text(0, -0.14, "not drawn: " + ", ".join(left_out), transform=axes.transAxes, va="top", fontsize=7, color="#777777")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", metavar="PLAN.json", help="file of `xquant-llm plan --json`")
    parser.add_argument("output", metavar="OUT.png")
    arguments = parser.parse_args()
    if arguments.output.endswith(".json"):
        parser.error("the last argument is the picture to write; it ends in .json")
    figure, axes = plt.subplots(figsize=(9.5, 6.2), dpi=110, layout="constrained")
    draw(figure, axes, load(arguments.input))
    figure.savefig(arguments.output)


if __name__ == "__main__":
    main()
