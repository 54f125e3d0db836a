#!/usr/bin/env python3
"""tools/bench_table.py REPORT.json... --json OUT.json: medians and ratios of xquant_bench's reports, as tables on stdout.

Ratios are those of medians of runs in random order, to the f16 scheme of the same verb, shape, length and backend. The spread
is half the distance of the quartiles, as a share of the median. Limits are the best of all reports: they were measured at each
one's start.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

VERBS = {
    "attend_decode": "Attention of one new token with T cached",
    "attend_prefill": "Attention of 512 new tokens with T cached",
    "append_step": "Adding one token: projection, writing, encoding",
    "rematerialize": "Keys rebuilt from codes",
    "encode": "Encoding f32 rows",
    "decode": "Decoding to f32 rows",
}
SCHEMES = ["f16", "kv8", "kv4", "kivi4", "svd_head4", "svd_joint4", "x4", "x3", "x4_rot"]
LIMITS = {"stream GB/s": "stream", "f32 GOP/s": "f32", "int8 GOP/s": "int8"}
UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}


def load(path):
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        sys.exit(f"bench_table.py: {path}: {error}")


def collect(reports):
    """name -> list of single runs, and the names that failed with their reason."""
    runs, failed = {}, {}
    for report in reports:
        for run in report["benchmarks"]:
            if run.get("error_occurred"):
                failed[run["run_name"]] = run["error_message"]
            elif run["run_type"] == "iteration":
                runs.setdefault(run["run_name"], []).append(run)
    return runs, failed


def machine_of(reports):
    context = reports[0]["context"]
    machine = {short: max(float(r["context"][name]) for r in reports) for name, short in LIMITS.items()}
    machine |= {name: context[name] for name in ("xquant", "best backend", "f32 form", "int8 form", "num_cpus", "date")}
    machine["load"] = max(max(r["context"]["load_avg"], default=0) for r in reports)
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            machine["processor"] = line.split(":", 1)[1].strip()
            break
    return machine


def seconds_of(run):
    """Of a single run: processor time of the thread, which attention and appending measure themselves."""
    measured = "real_time" if run["run_name"].startswith(("attend", "append")) else "cpu_time"
    return run[measured] * UNITS[run["time_unit"]]


def summarize_forks(name, runs):
    _, scheme, shape, tokens, backend, sequences = name.split("/")
    return {"name": name, "scheme": scheme, "shape": shape, "tokens": int(tokens[1:]), "backend": backend,
            "sequences": int(sequences[1:]), "seconds": statistics.median(map(seconds_of, runs)),
            "per_sequence": statistics.median(run["per_sequence"] for run in runs), "runs": len(runs)}


def print_forks(rows):
    print("\n### attend_forks: Attention of one new token of each of N sequences that share T\n")
    print("| shape | T | N | scheme | backend | time | a sequence, beside one alone |\n|---|---:|---:|---|---|---:|---:|")
    for row in rows:
        print(f"| {row['shape']} | {row['tokens']} | {row['sequences']} | {row['scheme']} | {row['backend']} "
              f"| {time_text(row['seconds'])} | {row['per_sequence']:.2f} |")


def summarize_rebuilt(name, runs):
    _, scheme, shape, tokens, backend, share = name.split("/")
    return {"name": name, "scheme": scheme, "shape": shape, "tokens": int(tokens[1:]), "backend": backend, "share": int(share),
            "seconds": statistics.median(map(seconds_of, runs)), "stored": runs[0]["stored/token"],
            "rebuilt": runs[0]["rebuilt/token"], "runs": len(runs)}


def print_rebuilt(rows):
    print("\n### attend_rebuilt: Attention of one new token with T cached, where rebuilt keys of a share of all pages are kept\n")
    print("| shape | T | scheme | backend | pages | stored bytes a token | rebuilt bytes a token | time |")
    print("|---|---:|---|---|---:|---:|---:|---:|")
    for row in rows:
        print(f"| {row['shape']} | {row['tokens']} | {row['scheme']} | {row['backend']} | {row['share']} % "
              f"| {row['stored']:.0f} | {row['rebuilt']:.0f} | {time_text(row['seconds'])} |")


def summarize(name, runs, machine):
    verb, scheme, shape, tokens, backend = name.split("/")
    times = [seconds_of(run) for run in runs]
    seconds = statistics.median(times)
    quartiles = statistics.quantiles(times, n=4) if len(times) > 2 else [seconds] * 3
    row = {"name": name, "verb": verb, "scheme": scheme, "shape": shape, "tokens": int(tokens[1:]), "backend": backend,
           "seconds": seconds, "spread": (quartiles[2] - quartiles[0]) / 2 / seconds, "runs": len(times),
           "bytes": runs[0]["bytes"], "operations": runs[0]["operations"], "error": runs[0].get("error"),
           "kv_heads": runs[0].get("kv_heads")}
    row["gb_s"] = row["bytes"] / seconds * 1e-9
    row["gop_s"] = row["operations"] / seconds * 1e-9
    for limit in ("f32", "int8"):
        row[limit] = row["gop_s"] / machine[limit]
    row["stream"] = row["gb_s"] / machine["stream"]
    return row


def add_ratios(rows):
    seconds = {row["name"]: row["seconds"] for row in rows}
    for row in rows:
        f16 = "/".join((row["verb"], "f16", row["shape"], f"T{row['tokens']}", row["backend"]))
        scalar = row["name"].rsplit("/", 1)[0] + "/scalar"
        row["to_f16"] = row["seconds"] / seconds[f16] if f16 in seconds else None
        row["to_scalar"] = row["seconds"] / seconds[scalar] if scalar in seconds and row["backend"] != "scalar" else None


def time_text(seconds):
    for unit, factor in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def number(value, form):
    return "" if value is None else format(value, form)


def print_tables(rows, machine):
    print(f"{machine.get('processor', 'unknown processor')}, {machine['num_cpus']} CPUs, load up to {machine['load']:.1f}; "
          f"{machine['date'][:10]}; xquant {machine['xquant']}, best backend {machine['best backend']}. One thread.")
    print(f"Limits of one core: stream {machine['stream']:.1f} GB/s; f32 {machine['f32']:.0f} GOP/s ({machine['f32 form']}); "
          f"int8 {machine['int8']:.0f} GOP/s ({machine['int8 form']}).")
    for verb, title in VERBS.items():
        mine = [row for row in rows if row["verb"] == verb]
        if not mine:
            continue
        products = any(row["operations"] for row in mine)
        decode = verb == "attend_decode"
        head = ["shape", "T", "scheme", "backend", "time", "+-", "x f16"]
        head += ["x scalar"] if any(row["to_scalar"] for row in mine) else []
        head += ["ns/token/kv head", "bytes/token"] if decode else []
        head += ["GB/s"] + (["stream", "GOP/s", "f32", "int8"] if products else [])
        print(f"\n### {verb}: {title}\n\n| " + " | ".join(head) + " |")
        print("|" + "|".join("---" if name in ("shape", "scheme", "backend") else "---:" for name in head) + "|")
        for row in mine:
            cells = [row["shape"], f"{row['tokens']}", row["scheme"], row["backend"], time_text(row["seconds"]),
                     f"{100 * row['spread']:.0f} %", number(row["to_f16"], ".2f")]
            cells += [number(row["to_scalar"], ".3f")] if "x scalar" in head else []
            if decode:
                cells += [f"{row['seconds'] * 1e9 / row['tokens'] / row['kv_heads']:.1f}", f"{row['bytes'] / row['tokens']:.0f}"]
            cells += [f"{row['gb_s']:.2f}"]
            if products:
                cells += [f"{100 * row['stream']:.1f} %", f"{row['gop_s']:.1f}", f"{100 * row['f32']:.0f} %", f"{100 * row['int8']:.0f} %"]
            print("| " + " | ".join(cells) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", nargs="+", metavar="REPORT.json")
    parser.add_argument("--json", metavar="OUT.json", required=True)
    arguments = parser.parse_args()
    reports = [load(path) for path in arguments.reports]
    runs, failed = collect(reports)
    machine = machine_of(reports)
    forks = {name: of_name for name, of_name in runs.items() if name.startswith("attend_forks/")}
    rebuilt = {name: of_name for name, of_name in runs.items() if name.startswith("attend_rebuilt/")}
    rows = [summarize(name, of_name, machine) for name, of_name in runs.items() if name not in forks and name not in rebuilt]
    verbs, shapes = list(VERBS), ["smollm2_135m", "llama3_8b", "llama2_7b", "gemma_mqa"]
    rows.sort(key=lambda row: (verbs.index(row["verb"]), shapes.index(row["shape"]), row["tokens"], SCHEMES.index(row["scheme"]),
                               row["backend"]))
    add_ratios(rows)
    of_forks = [summarize_forks(name, of_name) for name, of_name in forks.items()]
    of_forks.sort(key=lambda row: (shapes.index(row["shape"]), row["tokens"], row["sequences"], SCHEMES.index(row["scheme"])))
    of_rebuilt = [summarize_rebuilt(name, of_name) for name, of_name in rebuilt.items()]
    of_rebuilt.sort(key=lambda row: (shapes.index(row["shape"]), row["tokens"], SCHEMES.index(row["scheme"]), row["backend"], row["share"]))
    Path(arguments.json).write_text(
        json.dumps({"machine": machine, "benchmarks": rows, "forks": of_forks, "rebuilt": of_rebuilt, "failed": failed}, indent=1) + "\n")
    print_tables(rows, machine)
    if of_forks:
        print_forks(of_forks)
    if of_rebuilt:
        print_rebuilt(of_rebuilt)
    for name, reason in failed.items():
        print(f"bench_table.py: {name}: {reason}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
