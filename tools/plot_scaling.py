#!/usr/bin/env python3
"""tools/plot_scaling.py SCALING.json OUT.png: draws what tools/bench --scaling measured.

A row of panels for each shape: the time of a decode step over tokens, over sequences, over layers, and over threads
for one long sequence and for many. All axes are logarithmic; grey lines grow, or fall, in proportion, so that what
runs along one is bound by what the axis counts. Marks say what binds a measured step; dashed lines were computed and
not measured. Needs matplotlib.
"""

import argparse
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

# As in plot_roofline.py.
COLOURS = {"f16": "#333333", "kv4": "#8c510a", "svd_head4": "#1a7837", "x4_rot": "#2166ac"}
MARKS = {"memory": ("o", "memory"), "products": ("s", "products"), "kernels": ("D", "instructions around products"),
         "handling": ("X", "handling of sequences")}
GREY = "#888888"
DASHES = (0, (4, 2))  # of what was computed


def load(path):
    try:
        data = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        sys.exit(f"plot_scaling.py: {path}: {error}")
    if not isinstance(data, dict) or "cells" not in data or any("bound" not in cell for cell in data["cells"]):
        sys.exit(f"plot_scaling.py: {path}: not what tools/bench --scaling writes")
    return data


def count_text(value):
    return f"{value / 1024:g}K" if value >= 1024 else f"{value:g}"


def time_text(seconds, _=None):
    for unit, factor in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= factor * 0.9999:
            return f"{seconds / factor:g} {unit}"
    return f"{seconds * 1e6:g} us"


def dress(axes, values, title, label):
    axes.set(xscale="log", yscale="log")
    axes.set_title(title, loc="left", fontsize=9)
    axes.set_xlabel(label, fontsize=8.5)
    axes.xaxis.set_major_locator(FixedLocator(values))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count_text(value)))
    axes.yaxis.set_major_locator(LogLocator(numticks=12))
    axes.yaxis.set_major_formatter(FuncFormatter(time_text))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(values[0] / 1.25, values[-1] * 1.25)
    axes.tick_params(labelsize=8)
    axes.grid(True, which="major", color="#ececec", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def guide(axes, values, low, high, rising):
    """Lines that grow, or fall, in proportion."""
    ratio = values[-1] / values[0]
    start = low / ratio if rising else low
    while start < high * ratio:
        ends = [start, start * ratio if rising else start / ratio]
        axes.plot([values[0], values[-1]], ends, color="#d9d9d9", linewidth=0.8, zorder=0)
        start *= 16
    axes.set_ylim(low, high)


def draw_growth(axes, cells, axis, title, label, limits):
    values = sorted({cell[axis] for cell in cells})
    dress(axes, values, title, label)
    guide(axes, values, *limits, rising=True)
    for scheme, colour in COLOURS.items():
        mine = sorted((cell for cell in cells if cell["scheme"] == scheme), key=lambda cell: cell[axis])
        axes.plot([cell[axis] for cell in mine], [cell["seconds"] for cell in mine], color=colour, linewidth=1.4)
        for cell in mine:
            axes.scatter([cell[axis]], [cell["seconds"]], color=colour, marker=MARKS[cell["bound"]][0], s=30, zorder=3,
                         edgecolors="white", linewidths=0.5)


def draw_threads(axes, cells, title, limits):
    counts = [one["threads"] for one in cells[0]["computed"]]
    dress(axes, counts, title, "threads")
    guide(axes, counts, *limits, rising=False)
    for cell in cells:
        colour = COLOURS.get(cell["scheme"], "#000000")
        axes.plot(counts, [one["seconds"] for one in cell["computed"]], color=colour, linewidth=1.2, linestyle=DASHES)
        measured = [cell["wall"], cell["wall_two"]]
        axes.plot([1, 2], measured, color=colour, linewidth=1.4)
        axes.scatter([1, 2], measured, color=colour, marker="o", s=24, zorder=3, edgecolors="white", linewidths=0.5)


def panels_of(cells):
    """(title, x label, axis or None for threads, cells) of a shape."""
    grown = [cell["tokens"] for cell in cells if cell["layers"] > 1 or cell["sequences"] > 1]
    usual = grown[0] if grown else cells[0]["tokens"]
    long = [cell for cell in cells if cell["sequences"] == 1 and cell["layers"] == 1]
    many = [cell for cell in cells if cell["tokens"] == usual and cell["layers"] == 1]
    deep = [cell for cell in cells if cell["tokens"] == usual and cell["sequences"] == 1]
    out = [("1 sequence, 1 layer", "tokens", "tokens", long),
           (f"sequences of {usual:,} tokens, 1 layer", "sequences", "sequences", many),
           (f"1 sequence of {usual:,} tokens", "layers", "layers", deep)]
    threaded = [cell for cell in cells if cell.get("computed")]
    for tokens, count in sorted({(cell["tokens"], cell["sequences"]) for cell in threaded}, key=lambda key: key[1]):
        mine = [cell for cell in threaded if (cell["tokens"], cell["sequences"]) == (tokens, count)]
        out.append((f"{count} sequence{'s' if count > 1 else ''} of {tokens:,} tokens", "threads", None, mine))
    return out


def limits_of(cells):
    """The same for all panels of a shape, so that they can be read across."""
    times = [cell["seconds"] for cell in cells]
    times += [one["seconds"] for cell in cells for one in cell.get("computed", [])]
    times += [cell[key] for cell in cells if cell.get("computed") for key in ("wall", "wall_two")]
    return min(times) / 1.6, max(times) * 1.6


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", metavar="SCALING.json")
    parser.add_argument("output", metavar="OUT.png")
    arguments = parser.parse_args()
    data = load(arguments.input)
    cells, machine = data["cells"], data["machine"]
    shapes = list(dict.fromkeys(cell["shape"] for cell in cells))
    rows = [panels_of([cell for cell in cells if cell["shape"] == shape]) for shape in shapes]
    columns = max(len(row) for row in rows)
    size = (3.1 * columns, 3.4 * len(rows) + 0.9)
    figure, grid = plt.subplots(len(rows), columns, figsize=size, dpi=130, squeeze=False, sharey="row",
                                layout="constrained")
    bottom = 0.3 / size[1]
    figure.get_layout_engine().set(rect=(0, bottom, 1, 1 - bottom), hspace=0.04)  # room for the legend
    for shape, panels, line in zip(shapes, rows, grid):
        limits = limits_of([cell for cell in cells if cell["shape"] == shape])
        for (title, label, axis, mine), axes in zip(panels, line):
            if axis:
                draw_growth(axes, mine, axis, title, label, limits)
            else:
                draw_threads(axes, mine, title, limits)
        for axes in line[len(panels):]:
            axes.set_visible(False)
        line[0].set_ylabel(f"{shape}\ntime of a step", fontsize=9)
    used = {cell["bound"] for cell in cells}
    there = {cell["scheme"] for cell in cells}
    schemes = [Line2D([], [], color=COLOURS[name], linewidth=2, label=name) for name in COLOURS if name in there]
    marks = [Line2D([], [], marker=mark, linestyle="", color=GREY, label=f"bound by {label}")
             for name, (mark, label) in MARKS.items() if name in used]
    marks += [Line2D([], [], color=GREY, linewidth=1.2, linestyle=DASHES, label="computed, not measured"),
              Line2D([], [], color="#d9d9d9", linewidth=0.8, label="in proportion")]
    figure.legend(handles=schemes + marks, loc="lower center", ncols=len(schemes) + len(marks), fontsize=8.5,
                  frameon=False, handletextpad=0.4, columnspacing=1.2)
    figure.suptitle(f"{machine.get('processor', '')}, one thread unless threads are named, {machine['date']}",
                    fontsize=9, x=0.01, ha="left", color=GREY)
    figure.savefig(arguments.output)


if __name__ == "__main__":
    main()
