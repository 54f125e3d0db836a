#!/usr/bin/env python3
"""tools/plot_roofline.py BENCH.json OUT.png: draws what tools/bench measured.

For each shape a roofline: operations per byte against operations per second, both logarithmic, under the limits that were
measured in the same run; and below it the time of a decode step relative to the f16 cache. A point near the slope is bound by
memory, one near a level line by arithmetic; far below both, by neither. Needs matplotlib.
"""

import argparse
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

# As in plot_accuracy.py: X blue, latents green, keys and values brown, f16 grey.
COLOURS = {"f16": "#333333", "kv8": "#d6a760", "kv4": "#8c510a", "kivi4": "#c51b7d", "svd_head4": "#1a7837",
           "svd_joint4": "#7fbf7b", "x4_rot": "#2166ac"}
VERBS = {"attend_decode": ("o", "attention of 1 token"), "attend_prefill": ("s", "attention of 512 tokens"),
         "rematerialize": ("^", "keys from codes")}
GREY = "#888888"


def load(path):
    try:
        data = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        sys.exit(f"plot_roofline.py: {path}: {error}")
    if not isinstance(data, dict) or not {"machine", "benchmarks"} <= data.keys():
        sys.exit(f"plot_roofline.py: {path}: not what tools/bench writes")
    return data


def best_backend(rows):
    """Of each benchmark the run on the best backend; the specification only where there is no other."""
    others = {row["name"].rsplit("/", 1)[0] for row in rows if row["backend"] != "scalar"}
    return [row for row in rows if row["backend"] != "scalar" or row["name"].rsplit("/", 1)[0] not in others]


def longest(rows):
    """Of each verb and scheme the greatest length that was measured."""
    out = {}
    for row in rows:
        key = (row["verb"], row["scheme"])
        if key not in out or row["tokens"] > out[key]["tokens"]:
            out[key] = row
    return list(out.values())


def draw_limits(axes, machine, low, high):
    intensity = np.logspace(np.log10(low), np.log10(high), 200)
    for name, top, style in (("f32", machine["f32"], "-"), ("int8", machine["int8"], "--")):
        axes.plot(intensity, np.minimum(machine["stream"] * intensity, top), color=GREY, linewidth=1.3, linestyle=style, zorder=1)
        form = machine[f"{name} form"].split(",")[0]
        axes.text(high / 1.06, top * 1.06, f"{name} {form}: {top:.0f} GOP/s", ha="right", va="bottom", fontsize=8, color=GREY)
    x = low * 1.25
    y = machine["stream"] * x
    text = axes.text(x, y * 1.12, f"memory: {machine['stream']:.0f} GB/s", ha="left", va="bottom", fontsize=8, color=GREY,
                     rotation_mode="anchor")
    return text, (x, y)


def turn_along(axes, text, at, slope_to):
    """The label of a slope lies along it."""
    a, b = axes.transData.transform(at), axes.transData.transform(slope_to)
    text.set_rotation(np.degrees(np.arctan2(b[1] - a[1], b[0] - a[0])))


def draw_roofline(axes, rows, machine, shape):
    points = [row for row in longest(rows) if row["verb"] in VERBS and row["operations"] > 0]
    at = [(row["operations"] / row["bytes"], row["gop_s"]) for row in points]
    low, high = min(x for x, _ in at) / 3, max(x for x, _ in at) * 3
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(min(min(y for _, y in at) / 3, machine["stream"] * low), max(machine["int8"], machine["f32"]) * 2)
    memory, start = draw_limits(axes, machine, low, high)
    for row, (x, y) in zip(points, at):
        axes.scatter([x], [y], c=COLOURS.get(row["scheme"], "#000000"), marker=VERBS[row["verb"]][0], s=46, zorder=3,
                     edgecolors="white", linewidths=0.6)
    axes.set_xlabel("operations per byte that has to be read")
    axes.set_ylabel("GOP/s")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    tokens = {verb: max((row["tokens"] for row in points if row["verb"] == verb), default=None) for verb in VERBS}
    lengths = ", ".join(f"{verb} T {tokens[verb]:,}" for verb in VERBS if tokens[verb])
    axes.set_title(f"{shape}\n{lengths}", loc="left", fontsize=9.5)
    axes.grid(True, which="major", color="#ececec", linewidth=0.7)
    axes.set_axisbelow(True)
    turn_along(axes, memory, start, (start[0] * 10, start[1] * 10))


def draw_ratios(axes, rows, shape):
    mine = [row for row in rows if row["verb"] == "attend_decode" and row["to_f16"] is not None]
    lengths = sorted({row["tokens"] for row in mine})
    schemes = [name for name in COLOURS if any(row["scheme"] == name for row in mine)]
    width = 0.8 / len(schemes)
    for i, scheme in enumerate(schemes):
        of = {row["tokens"]: row for row in mine if row["scheme"] == scheme}
        xs = [lengths.index(t) + (i - (len(schemes) - 1) / 2) * width for t in of]
        ys = [row["to_f16"] for row in of.values()]
        axes.bar(xs, ys, width * 0.92, color=COLOURS[scheme])
        for x, y in zip(xs, ys):
            axes.text(x, y * 1.04, f"{y:.2f}" if y < 9.95 else f"{y:.0f}", ha="center", va="bottom", fontsize=7.5)
    axes.axhline(1, color=GREY, linewidth=0.9, zorder=0)
    axes.set_yscale("log")
    most, least = max(row["to_f16"] for row in mine), min(row["to_f16"] for row in mine)
    axes.set_ylim(min(0.5, least / 1.5), most * 1.7)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xticks(range(len(lengths)), [f"T {t:,}" for t in lengths])
    axes.set_ylabel("time of f16")
    backends = ", ".join(sorted({row["backend"] for row in mine}))
    axes.set_title(f"attention of 1 token, relative to the f16 cache ({backends})", loc="left", fontsize=9.5)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", metavar="BENCH.json")
    parser.add_argument("output", metavar="OUT.png")
    arguments = parser.parse_args()
    data = load(arguments.input)
    rows = best_backend(data["benchmarks"])
    shapes = list(dict.fromkeys(row["shape"] for row in rows if row["verb"] == "attend_decode" and row["to_f16"] is not None))
    if not shapes:
        sys.exit("plot_roofline.py: no attend_decode with its f16 scheme to draw")
    figure, panels = plt.subplots(2, len(shapes), figsize=(7.2 * len(shapes), 8.6), dpi=130, squeeze=False,
                                  height_ratios=[1.7, 1], layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0.035, 1, 0.965))  # room for the legend
    for column, shape in enumerate(shapes):
        of_shape = [row for row in rows if row["shape"] == shape]
        figure.canvas.draw()
        draw_ratios(panels[1][column], of_shape, shape)
        draw_roofline(panels[0][column], of_shape, data["machine"], shape)
    for axes in panels.flat:
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    used = [name for name in COLOURS if any(row["scheme"] == name and row["verb"] in VERBS for row in rows)]
    marks = [Line2D([], [], marker="o", linestyle="", color=COLOURS[name], label=name) for name in used]
    marks += [Line2D([], [], marker=marker, linestyle="", color="#777777", label=label) for marker, label in VERBS.values()]
    figure.legend(handles=marks, loc="lower center", ncols=len(marks), fontsize=8.5, frameon=False, handletextpad=0.2,
                  columnspacing=1.2)
    machine = data["machine"]
    figure.suptitle(f"{machine.get('processor', '')}, one core, {machine['date'][:10]}", fontsize=9, x=0.01, ha="left", color=GREY)
    figure.savefig(arguments.output)


if __name__ == "__main__":
    main()
