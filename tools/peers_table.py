#!/usr/bin/env python3
"""tools/peers_table.py DIR: medians and ratios of what tools/bench-peers measured in DIR, as tables on stdout."""

import json
import re
import statistics
import sys
from pathlib import Path


def load(path):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        sys.exit(f"peers_table.py: {path}: {error}")


def decode_samples(folder):
    """(threads, clock, who) -> depth -> list of (seconds a token, seconds in the cache or None)."""
    samples = {}
    for program, name in (("llama", "llama.cpp"), ("xquant", "xquant")):
        for path in sorted(folder.glob(f"{program}-*-*.json")):
            data = load(path)
            for sample in data["samples"]:
                # Samples make the cache longer; each is near the depth that was asked for.
                depth = max(d for d in data["depths"] if d <= sample["depth"])
                key = (data["threads"], data["clock"], f"{name} {sample['scheme']}")
                into = samples.setdefault(key, {}).setdefault(depth, [])
                into.append((sample["token_seconds"], sample.get("cache_seconds")))
    return samples


def slope(by_depth, which):
    """Seconds a token for each token cached, between the least and the greatest depth; None where it was not measured."""
    low, high = min(by_depth), max(by_depth)
    medians = []
    for depth in (low, high):
        values = [sample[which] for sample in by_depth[depth]]
        if None in values:
            return None
        medians.append(statistics.median(values))
    return (medians[1] - medians[0]) / (high - low)


def print_decode(samples):
    for threads, clock in sorted({key[:2] for key in samples}):
        mine = {key[2]: by_depth for key, by_depth in samples.items() if key[:2] == (threads, clock)}
        slopes = {who: slope(by_depth, 0) for who, by_depth in mine.items()}
        cache = {who: slope(by_depth, 1) for who, by_depth in mine.items()}
        best = {who: cache[who] if cache[who] is not None else slopes[who] for who in mine}
        yardstick, own = best.get("llama.cpp f16"), best.get("xquant f16")
        depths = sorted({depth for by_depth in mine.values() for depth in by_depth})
        print(f"\n### Decode on SmolLM2-135M, {threads} thread{'s' if threads > 1 else ''}, {clock} time\n")
        print("| cache | " + " | ".join(f"ms/token at {depth}" for depth in depths) +
              " | slope, ns | of it in the cache | x llama.cpp f16 | x xquant f16 | samples |")
        print("|---|" + "---:|" * (len(depths) + 5))
        for who, by_depth in mine.items():
            cells = [f"{1e3 * statistics.median(s[0] for s in by_depth[depth]):.1f}" for depth in depths]
            cells += [f"{1e9 * slopes[who]:.0f}", "" if cache[who] is None else f"{1e9 * cache[who]:.0f}"]
            cells += ["" if base is None else f"{best[who] / base:.2f}" for base in (yardstick, own)]
            print(f"| {who} | " + " | ".join(cells) + f" | {min(len(s) for s in by_depth.values())} |")
    print("\nThe slope is the time that a token takes longer for each token cached, over all layers; ratios are those of slopes, "
          "for xquant of the time in the cache.")


def print_product(report):
    seconds = {}
    for run in report["benchmarks"]:
        if run.get("error_occurred"):
            sys.exit(f"peers_table.py: {run['name']}: {run['error_message']}")
        if run["run_type"] == "iteration":
            _, who, shape = re.sub(r"/(iterations|min_time|manual_time).*", "", run["run_name"]).split("/")
            seconds.setdefault(shape, {}).setdefault(who, []).append((run["cpu_time"], run["GOP/s"]))
    print("\n### The product that rebuilds keys, f32, one thread\n")
    print("| tokens x width x Dh | who | us | GOP/s | time of Eigen | time of OpenBLAS |\n|---|---|---:|---:|---:|---:|")
    for shape, of in seconds.items():
        of = dict(sorted(of.items()))
        median = {who: statistics.median(t for t, _ in runs) for who, runs in of.items()}
        for who, runs in of.items():
            print(f"| {shape} | {who} | {median[who]:.1f} | {statistics.median(g for _, g in runs):.1f} | "
                  f"{median[who] / median['eigen']:.2f} | {median[who] / median['openblas']:.2f} |")


def main():
    if len(sys.argv) != 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        return 0 if len(sys.argv) == 2 else 2
    folder = Path(sys.argv[1])
    samples, product = decode_samples(folder), folder / "product.json"
    if samples:
        print_decode(samples)
    if product.exists():
        print_product(load(product))
    if not samples and not product.exists():
        sys.exit(f"peers_table.py: {folder}: nothing measured there")
    return 0


sys.exit(main())
