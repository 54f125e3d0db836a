#!/usr/bin/env python3
"""tools/plot_cuda.py CUDA.json OUT.png: draws what tools/bench-cuda measured.

For each shape and batch the time of a decode step over the length of the sequences, both logarithmic: measured (solid) and predicted
from the limits of the same run (dashed). The nearer the two lines, the nearer a kernel is to its limit. Needs matplotlib.
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

# As in plot_roofline.py.
COLOURS = {"f16": "#333333", "kv8": "#d6a760", "kv4": "#8c510a", "svd_head4": "#1a7837", "x4_rot": "#2166ac"}


def load(path):
    try:
        data = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        sys.exit(f"plot_cuda.py: {path}: {error}")
    if not isinstance(data, dict) or not {"device", "rows"} <= data.keys():
        sys.exit(f"plot_cuda.py: {path}: not what tools/bench-cuda writes")
    return data


def draw(axes, rows, title):
    for scheme, colour in COLOURS.items():
        mine = sorted((row for row in rows if row["scheme"] == scheme), key=lambda row: row["tokens"])
        if not mine:
            continue
        tokens = [row["tokens"] for row in mine]
        axes.plot(tokens, [row["seconds"] * 1e6 for row in mine], color=colour, marker="o", markersize=4)
        axes.plot(tokens, [row["predicted_seconds"] * 1e6 for row in mine], color=colour, linestyle="--", linewidth=1)
    axes.set(xscale="log", yscale="log", title=title, xlabel="tokens of each sequence")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1024:g}K"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(sorted({row["tokens"] for row in rows}))
    axes.grid(alpha=0.25)


def main():
    if sys.argv[1:] in (["-h"], ["--help"]):
        print(__doc__)
        return
    if len(sys.argv) != 3:
        sys.exit("plot_cuda.py: needs CUDA.json and OUT.png; see --help")
    data = load(sys.argv[1])
    rows = [row for row in data["rows"] if row["verb"] == "attend_decode"]
    if not rows:
        sys.exit("plot_cuda.py: no attend_decode to draw")
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    batches = sorted({row["batch"] for row in rows})
    figure, grid = plt.subplots(len(shapes), len(batches), figsize=(3.4 * len(batches) + 1, 3.2 * len(shapes) + 0.8), squeeze=False,
                                sharey="row")
    for line, shape in zip(grid, shapes):
        for axes, batch in zip(line, batches):
            mine = [row for row in rows if row["shape"] == shape and row["batch"] == batch]
            if mine:
                draw(axes, mine, f"{shape}, batch {batch}")
            else:
                axes.set_visible(False)
        line[0].set_ylabel("us for a layer")
    there = {row["scheme"] for row in rows}
    handles = [Line2D([], [], color=colour, marker="o", markersize=4, label=scheme) for scheme, colour in COLOURS.items() if scheme in there]
    handles += [Line2D([], [], color="#333333", linestyle="--", linewidth=1, label="predicted")]
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False)
    figure.suptitle(f"Decode on {data['device']}")
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(sys.argv[2], dpi=130)


main()
