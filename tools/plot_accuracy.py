#!/usr/bin/env python3
"""tools/plot_accuracy.py: draws what `xquant-llm perplexity --json` measured: bytes per token against divergence.

    plot_accuracy.py IN.json OUT.png                   one panel
    plot_accuracy.py A.json B.json ... OUT.png         one panel for each file, two to a row

Both axes are logarithmic, down and left is better, and the line joins the schemes that no other one beats in both (the Pareto front).
Schemes whose divergence is rounding alone (below 2e-6: f16) are left out, and the panel says so. Needs matplotlib.
"""

import argparse
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, NullFormatter

# The first prefix that fits names the family.
FAMILIES = [
    ("cl_svd", "cross-layer, latents", "#b2182b", "D"),
    ("cl_x", "cross-layer, X", "#ef8a62", "D"),
    ("svd_head", "SVD of each head", "#1a7837", "o"),
    ("svd_joint", "SVD of K and V (paper)", "#7fbf7b", "o"),
    ("x", "X", "#2166ac", "s"),
    ("kvquant", "KVQuant", "#8c6d31", "^"),
    ("kivi", "KIVI", "#b8860b", "^"),
    ("", "ggml, f16", "#555555", "v"),
]


LEAST = 2e-6


def family_of(name):
    return next(family for family in FAMILIES if name.startswith(family[0]))


def pareto(points):
    """Those of (bytes, kld, name) that no other one beats in both, by bytes."""
    front, least = [], float("inf")
    for point in sorted(points):
        if point[1] < least:
            front.append(point)
            least = point[1]
    return front


def load(path):
    try:
        data = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        sys.exit(f"plot_accuracy.py: {path}: {error}")
    wanted = {"model", "context", "sinks", "tail", "schemes"}
    if not isinstance(data, dict) or not wanted <= data.keys():
        sys.exit(f"plot_accuracy.py: {path}: not what `xquant-llm perplexity --json` writes")
    return data


def place_labels(figure, axes, points):
    """Names beside their points, each in the first free place around it: found by trying, since there are few."""
    renderer = figure.canvas.get_renderer()
    spots = [(6, 3, "left"), (6, -9, "left"), (-6, 3, "right"), (-6, -9, "right"), (0, 9, "center"), (0, -15, "center"),
             (14, 12, "left"), (14, -18, "left"), (-14, 12, "right"), (-14, -18, "right"), (22, 22, "left"), (22, -28, "left")]
    taken = []
    for x, y, _ in points:
        at = axes.transData.transform((x, y))
        taken.append((at[0] - 5, at[1] - 5, at[0] + 5, at[1] + 5))
    frame = axes.get_window_extent(renderer)

    def overlap(box, other):
        return max(0, min(box[2], other[2]) - max(box[0], other[0])) * max(0, min(box[3], other[3]) - max(box[1], other[1]))

    for x, y, name in sorted(points, key=lambda point: point[1]):
        best = None
        for dx, dy, align in spots:
            text = axes.annotate(name, (x, y), xytext=(dx, dy), textcoords="offset points", fontsize=7.5, ha=align,
                                 color=family_of(name)[2])
            extent = text.get_window_extent(renderer)
            box = (extent.x0, extent.y0, extent.x1, extent.y1)
            cost = sum(overlap(box, other) for other in taken)
            if box[0] < frame.x0 or box[2] > frame.x1 or box[1] < frame.y0 or box[3] > frame.y1:
                cost += 1e4
            if best is None or cost < best[0]:
                if best is not None:
                    best[1].remove()
                best = (cost, text, box)
            else:
                text.remove()
            if best[0] == 0:
                break
        taken.append(best[2])


def draw(figure, axes, data):
    points = [(s["bytes_per_token"], s["kld_mean"], s["name"]) for s in data["schemes"] if s["kld_mean"] > LEAST]
    left_out = [s["name"] for s in data["schemes"] if s["kld_mean"] <= LEAST]
    if not points:
        sys.exit("plot_accuracy.py: no scheme has a divergence to draw")
    axes.set_xscale("log")
    axes.set_yscale("log")
    front = pareto(points)
    axes.plot([p[0] for p in front], [p[1] for p in front], color="#bbbbbb", linewidth=1.2, zorder=1, label="Pareto front")
    for prefix, label, colour, marker in FAMILIES:
        mine = [p for p in points if family_of(p[2])[0] == prefix]
        if mine:
            axes.scatter([p[0] for p in mine], [p[1] for p in mine], c=colour, marker=marker, s=34, label=label, zorder=3)
    low, high = min(p[0] for p in points), max(p[0] for p in points)
    axes.set_xlim(low / 1.18, high * 1.18)
    ticks = [t for t in (500, 700, 1000, 1500, 2000, 3000, 4000, 6000, 8000, 12000, 16000, 24000, 32000, 48000, 64000)
             if low / 1.18 <= t <= high * 1.18]
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(min(p[1] for p in points) / 2, max(p[1] for p in points) * 2)
    axes.grid(True, which="major", color="#e5e5e5", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_xlabel("bytes per token, all layers, as allocated")
    axes.set_ylabel("mean KL divergence from the exact cache (nats)")
    title = f"{Path(data['model']).stem}\ncontext {data['context']:,}, {data['sinks']} sinks, {data['tail']} recent tokens exact"
    axes.set_title(title, loc="left", fontsize=10)
    if left_out:
        axes.text(0.99, 0.01, "not drawn (rounding alone): " + ", ".join(left_out), transform=axes.transAxes, ha="right",
                  va="bottom", fontsize=7, color="#777777")
    figure.canvas.draw()
    place_labels(figure, axes, points)
    axes.legend(fontsize=8, frameon=False, loc="upper right")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", metavar="IN.json", help="files of `xquant-llm perplexity --json`")
    parser.add_argument("output", metavar="OUT.png")
    arguments = parser.parse_args()
    if arguments.output.endswith(".json"):
        parser.error("the last argument is the picture to write; it ends in .json")
    all_data = [load(path) for path in arguments.inputs]
    columns = min(2, len(all_data))
    rows = -(-len(all_data) // columns)
    figure, panels = plt.subplots(rows, columns, figsize=(9.5 * columns, 6.6 * rows), dpi=110, squeeze=False, layout="constrained")
    for axes, data in zip(panels.flat, all_data):
        draw(figure, axes, data)
    for axes in panels.flat[len(all_data):]:
        axes.set_axis_off()
    figure.savefig(arguments.output)


if __name__ == "__main__":
    main()
