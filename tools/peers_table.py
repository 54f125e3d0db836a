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


SHAPES = ["smollm2_135m", "llama3_8b", "llama2_7b", "gemma_mqa"]
# What reads prompts, in the order of the table.
WHO = {"ggml_flash_f16": "llama.cpp f16, flash attention", "ggml_flash_q8_0": "llama.cpp q8_0, flash attention",
       "ggml_unfused_f16": "llama.cpp f16, unfused", "f16": "xquant f16", "kv8": "xquant kv8", "kv4": "xquant kv4",
       "svd_head4": "xquant svd_head4", "head4": "xquant head4"}


def prompt_runs(report):
    """(verb, who, shape, tokens) -> list of runs."""
    runs = {}
    for run in report["benchmarks"]:
        if run.get("error_occurred"):
            sys.exit(f"peers_table.py: {run['name']}: {run['error_message']}")
        if run["run_type"] == "iteration":
            runs.setdefault(tuple(run["run_name"].split("/")[:4]), []).append(run)
    return runs


def print_prompts(report):
    runs, context = prompt_runs(report), report["context"]
    limits = {name: float(context[name]) for name in ("stream GB/s", "f32 GOP/s", "int8 GOP/s")}
    names = ("real_time", "cpu_time", "GB/s", "GOP/s", "error", "nearest")
    of = {key: {name: statistics.median(run[name] for run in mine) for name in names if name in mine[0]}
          for key, mine in runs.items()}
    count = min(len(mine) for mine in runs.values())
    load = max(context["load_avg"], default=0)
    print(f"\n### Prompts, one thread\n\nMedians of {count} runs in random order, {context['date'][:10]}, load {load:.1f} at "
          f"the start. Limits of one core in the same run: stream {limits['stream GB/s']:.1f} GB/s, "
          f"f32 {limits['f32 GOP/s']:.0f} GOP/s, int8 {limits['int8 GOP/s']:.0f} GOP/s.\n\n"
          "Attention of 512 tokens, one layer. GOP/s are those of q k^T and p V of what a row sees, the same for all; "
          "`error` is that of the answer beside f64's.\n")
    print("| shape | T | who | ms | GOP/s | f32 | time of llama.cpp f16 (the faster) | error |")
    print("|---|---:|---|---:|---:|---:|---:|---:|")
    attending = [key for key in of if key[0] == "attend_prompt"]
    for key in sorted(attending, key=lambda key: (SHAPES.index(key[2]), list(WHO).index(key[1]))):
        _, who, shape, tokens = key
        row = of[key]
        best = min(of["attend_prompt", form, shape, tokens]["real_time"]
                   for form in ("ggml_flash_f16", "ggml_unfused_f16"))
        print(f"| {shape} | {tokens[1:]} | {WHO[who]} | {row['real_time']:.1f} "
              f"| {row['GOP/s']:.1f} | {100 * row['GOP/s'] / limits['f32 GOP/s']:.0f} % "
              f"| {row['real_time'] / best:.2f} | {row['error']:.2g} |")
    print("\nEncoding 512 f32 rows: GB/s of these rows, and their share of what one core reads. With feedback each channel "
          "is rounded for what the errors before it cost.\n")
    print("| shape | rounding | stream | us | GB/s | of stream | x nearest |\n|---|---|---|---:|---:|---:|---:|")
    for key in sorted((key for key in of if key not in attending), key=lambda key: (SHAPES.index(key[2]), key[0], key[1])):
        _, what, shape, _ = key
        row = of[key]
        times = f"{row['nearest']:.1f}" if "nearest" in row else ""
        print(f"| {shape} | {'feedback' if times else 'nearest'} | {what} | {row['cpu_time']:.0f} | {row['GB/s']:.2f} "
              f"| {100 * row['GB/s'] / limits['stream GB/s']:.1f} % | {times} |")


def main():
    if len(sys.argv) != 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        return 0 if len(sys.argv) == 2 else 2
    folder = Path(sys.argv[1])
    samples, product = decode_samples(folder), folder / "product.json"
    prompts = folder / "prompts.json"
    if samples:
        print_decode(samples)
    if product.exists():
        print_product(load(product))
    if prompts.exists():
        print_prompts(load(prompts))
    if not samples and not product.exists() and not prompts.exists():
        sys.exit(f"peers_table.py: {folder}: nothing measured there")
    return 0


sys.exit(main())
