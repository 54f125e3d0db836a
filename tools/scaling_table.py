#!/usr/bin/env python3
"""tools/scaling_table.py RAW.json --json OUT.json [--memory GB/S] [--threads N]: how the time of a decode step grows, as
tables on stdout.

RAW.json is what xquant_bench_scaling writes. OUT.json has the same and what is made of it: the time of each cell,
what binds it, and the time on 2 to N threads.

What binds a cell is the largest of three shares of a step's time:

    memory    bytes that have to be read / what one core reads in that time
    products  the time of the multiply-adds at the peak for their kind, 8-bit integers or f32
    handling  begin, commit, and what append and attend do outside of their tasks: lists of sequences, pages and tasks

Where none of the three is a third of the time, "kernels" binds it: instructions around the products, such as
unpacking, RoPE, softmax, sums over lanes.

Times on more threads are computed, not measured. Each call of the executor takes what the slowest thread takes whose
turn it is, if tasks go to the first free thread in order and each takes what it took alone; but no less than its bytes
take at the memory's rate, which is what each of two threads reads while both do, times the threads, or --memory, whichever
is less; and handing out takes what it was measured to take for two threads, times the logarithm of the threads to the base
of two. What is outside of tasks stays on one thread. Arithmetic sets no limit of its own: a task takes the instructions
that it took alone. Slower clocks of processors whose cores all work are left out, and so are shared caches.
"""

import argparse
import heapq
import json
import math
import os
import sys
from pathlib import Path

SCHEMES = ["f16", "kv4", "svd_head4", "x4_rot"]
PARTS = ("begin", "append", "attend", "commit")


def load(path):
    try:
        data = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        sys.exit(f"scaling_table.py: {path}: {error}")
    if not isinstance(data, dict) or not {"machine", "cells"} <= data.keys() or not data["cells"]:
        sys.exit(f"scaling_table.py: {path}: not what xquant_bench_scaling writes")
    return data


def add_machine(machine):
    """What the system says of the machine."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    machine.setdefault("processor", names[0] if names else "unknown processor")
    machine.setdefault("cpus", os.cpu_count())


def add_bound(cell, machine):
    seconds = cell["seconds"] = sum(cell[part] for part in PARTS)
    shares = {
        "memory": cell["bytes"] / machine["stream"] / seconds,
        "products": (cell["f32"] / machine["f32"] + cell["int8"] / machine["int8"]) / seconds,
        "handling": min(1.0, cell["handling"] / seconds),
    }
    cell["shares"] = shares
    most = max(shares, key=shares.get)
    cell["bound"] = most if shares[most] >= 1 / 3 else "kernels"


def makespan(tasks, threads):
    """When the last of the tasks ends, if each goes to the first thread that is free, in order."""
    free = [0.0] * min(threads, len(tasks))
    for seconds in tasks:
        heapq.heappush(free, heapq.heappop(free) + seconds)
    return max(free, default=0.0)


def on_threads(cell, machine, threads, memory):
    """Seconds of a step on so many threads, how many tasks attention has at most in a call, and the share of the
    threads' time in calls in which they have work."""
    rate = machine["stream"] if threads == 1 else min(machine["stream of two"] / 2 * threads, memory)
    attending = sum(sum(call["seconds"]) for call in cell["calls"] if call["attends"]) or 1.0
    seconds, busy, spans, most = cell["handling"], 0.0, 0.0, 0
    for call in cell["calls"]:
        alone = sum(call["seconds"])
        if call["attends"]:
            most = max(most, len(call["seconds"]))
        bytes_read = cell["bytes"] * alone / attending if call["attends"] else 0.0
        span = max(makespan(call["seconds"], threads), bytes_read / rate)
        if len(call["seconds"]) > 1 and threads > 1:
            span += machine["handout"] * math.log2(threads)
        seconds += span
        spans += span
        busy += alone
    return seconds, most, busy / (spans * threads) if spans else 0.0


def add_threads(cell, machine, most, memory):
    counts = [1]
    while counts[-1] * 2 <= most:
        counts.append(counts[-1] * 2)
    cell["computed"] = []
    for threads in counts:
        seconds, tasks, busy = on_threads(cell, machine, threads, memory)
        cell["computed"].append({"threads": threads, "seconds": seconds, "tasks": tasks, "busy": busy})


def time_text(seconds):
    for unit, factor in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def print_grid(title, head, cells, of, axis):
    """A line for each shape and scheme, a column for each value of the axis."""
    values = sorted({cell[axis] for cell in cells})
    print(f"\n{title}\n\n| shape | scheme | " + " | ".join(head(value) for value in values) + " |")
    print("|---|---|" + "---:|" * len(values))
    keys = list(dict.fromkeys((cell["shape"], cell["scheme"]) for cell in cells))
    for shape, scheme in keys:
        mine = {cell[axis]: cell for cell in cells if (cell["shape"], cell["scheme"]) == (shape, scheme)}
        cells_of = [of(mine[value]) if value in mine else "" for value in values]
        print(f"| {shape} | {scheme} | " + " | ".join(cells_of) + " |")


def cell_text(cell):
    shares = cell["shares"]
    percent = "/".join(f"{100 * shares[name]:.0f}" for name in ("memory", "products", "handling"))
    return f"{time_text(cell['seconds'])}, {cell['bound']} {percent}"


def print_threads(cells, shown):
    print("\nThreads: wall time on 1 and 2 threads was measured; the rest is **computed, not measured**. `tasks`: those "
          "of attention of one layer; `busy`: the share of the threads' time in calls in which they have work.\n")
    head = ["shape", "scheme", "tokens x sequences", "tasks", "1", "2", "2 computed"]
    head += [f"{n} computed" for n in shown] + [f"busy at {shown[-1]}"]
    print("| " + " | ".join(head) + " |\n|---|---|" + "---:|" * (len(head) - 2))
    for cell in cells:
        computed = {one["threads"]: one for one in cell["computed"]}
        alone, wall, two = computed[1]["seconds"], cell["wall"], cell["wall_two"]
        row = [cell["shape"], cell["scheme"], f"{cell['tokens']:,} x {cell['sequences']}", str(computed[1]["tasks"])]
        row += [time_text(wall), f"{time_text(two)} ({wall / two:.2f} x)", time_text(computed[2]["seconds"])]
        for n in shown:
            row.append(f"{time_text(computed[n]['seconds'])} ({alone / computed[n]['seconds']:.1f} x)")
        row += [f"{100 * computed[shown[-1]]['busy']:.0f} %"]
        print("| " + " | ".join(row) + " |")


def usual_of(cells):
    """Tokens of the cells where sequences or layers grow."""
    return next((cell["tokens"] for cell in cells if cell["layers"] > 1 or cell["sequences"] > 1), None)


def print_tables(data, memory, most):
    machine, cells = data["machine"], data["cells"]
    usual = usual_of(cells)
    print(f"{machine['processor']}, {machine['cpus']} CPUs, load up to {machine['load']:.1f}; {machine['date']}; "
          f"xquant {machine['xquant']}, {machine['backend']}. Limits of one core in the same run: "
          f"stream {machine['stream'] * 1e-9:.1f} GB/s; f32 {machine['f32'] * 1e-9:.0f} GOP/s; "
          f"int8 {machine['int8'] * 1e-9:.0f} GOP/s.")
    print("\nEach entry: processor time of a step on one thread, what binds it, and the shares of "
          "memory/products/handling in %.")
    one = [cell for cell in cells if cell["sequences"] == 1 and cell["layers"] == 1]
    print_grid("Tokens, one sequence, one layer:", lambda n: f"{n:,} tokens", one, cell_text, "tokens")
    if usual is not None:
        many = [cell for cell in cells if cell["tokens"] == usual and cell["layers"] == 1]
        print_grid(f"Sequences of {usual:,} tokens with pages of their own, one layer:",
                   lambda n: f"{n} sequence{'s' if n > 1 else ''}", many, cell_text, "sequences")
        deep = [cell for cell in cells if cell["tokens"] == usual and cell["sequences"] == 1]
        print_grid(f"Layers, one sequence of {usual:,} tokens:", lambda n: f"{n} layer{'s' if n > 1 else ''}", deep,
                   cell_text, "layers")
    threaded = [cell for cell in cells if cell["calls"]]
    if threaded:
        print(f"\nMemory for many threads is taken to be {machine['stream of two'] / 2 * 1e-9:.1f} GB/s for each, up to "
              f"{memory * 1e-9:.0f} GB/s in all; handing out a call's tasks to two threads took "
              f"{machine['handout'] * 1e6:.1f} us.")
        print_threads(threaded, [n for n in (8, 64) if n <= most] or [most])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", metavar="RAW.json")
    parser.add_argument("--json", metavar="OUT.json", required=True)
    parser.add_argument("--memory", metavar="GB/S", type=float, default=370,
                        help="what all threads together read at most; default 370, 0.8 of twelve channels of DDR5-4800")
    parser.add_argument("--threads", metavar="N", type=int, default=64, help="compute up to so many; default 64")
    arguments = parser.parse_args()
    if not arguments.memory > 0:
        parser.error("--memory: expected a positive number")
    if not 2 <= arguments.threads <= 4096:
        parser.error("--threads: expected 2 to 4096")
    data = load(arguments.raw)
    memory = arguments.memory * 1e9
    add_machine(data["machine"])
    data["machine"]["memory of many threads"] = memory
    data["cells"].sort(key=lambda cell: SCHEMES.index(cell["scheme"]))
    shapes = list(dict.fromkeys(cell["shape"] for cell in data["cells"]))
    data["cells"].sort(key=lambda cell: shapes.index(cell["shape"]))
    for cell in data["cells"]:
        add_bound(cell, data["machine"])
        if cell["calls"]:
            add_threads(cell, data["machine"], arguments.threads, memory)
    Path(arguments.json).write_text(json.dumps(data) + "\n")
    print_tables(data, memory, arguments.threads)


if __name__ == "__main__":
    main()
