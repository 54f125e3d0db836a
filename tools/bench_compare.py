#!/usr/bin/env python3
"""tools/bench_compare.py BASE NEW --filter REGEX [--rounds N] [--json FILE]: two builds of xquant_bench beside each other.

Each round runs both programs, one after the other, in turn with either first; a slow minute of the machine hits both. For each
benchmark that both have, the table gives the median of the rounds' ratios NEW / BASE, their smallest and largest, and the
medians of both times. A ratio whose smallest and largest lie on both sides of 1 says nothing. Exit status 1 where an answer
was wrong.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench_table import collect, load, seconds_of


def run(program, pattern, folder):
    """name -> microseconds of one run, and the names whose answers were wrong."""
    report = Path(folder) / "report.json"
    done = subprocess.run(
        [program, f"--benchmark_filter={pattern}", f"--benchmark_out={report}", "--benchmark_out_format=json"],
        capture_output=True, text=True, check=False)
    if not report.exists() or not report.stat().st_size:
        sys.exit(f"bench_compare.py: {program}: {done.stderr.strip() or 'no benchmark fits'}")
    runs, failed = collect([load(report)])
    report.unlink()
    times = {name: 1e6 * seconds_of(single[0]) for name, single in runs.items()}
    return times, [f"{name}: {reason}" for name, reason in failed.items()]


def measure(base, new, pattern, rounds):
    times, failed = {"base": {}, "new": {}}, set()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            both = [("base", base), ("new", new)]
            for who, program in both if number % 2 == 0 else reversed(both):
                print(f"\rround {number + 1} of {rounds}, {who:4}", end="", file=sys.stderr, flush=True)
                found, wrong = run(program, pattern, folder)
                failed |= {f"{who}: {line}" for line in wrong}
                for name, time in found.items():
                    times[who].setdefault(name, []).append(time)
    print("\r" + " " * 40 + "\r", end="", file=sys.stderr)
    return times, sorted(failed)


def rows_of(times):
    for name, base in times["base"].items():
        new = times["new"].get(name, [])
        if len(new) != len(base):
            continue
        ratios = [b / a for a, b in zip(base, new)]
        yield {"name": name, "ratio": statistics.median(ratios), "smallest": min(ratios), "largest": max(ratios),
               "base_us": statistics.median(base), "new_us": statistics.median(new)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base")
    parser.add_argument("new")
    parser.add_argument("--filter", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    times, failed = measure(options.base, options.new, options.filter, options.rounds)
    rows = list(rows_of(times))
    print("| benchmark | new / base | smallest | largest | base, us | new, us |\n|---|---:|---:|---:|---:|---:|")
    for row in rows:
        print(f"| {row['name']} | {row['ratio']:.2f} | {row['smallest']:.2f} | {row['largest']:.2f} "
              f"| {row['base_us']:.0f} | {row['new_us']:.0f} |")
    alone = sorted(set(times["base"]) ^ set(times["new"]))
    if alone:
        print(f"\nOnly one of the two has: {', '.join(alone)}")
    for line in failed:
        print(f"wrong: {line}", file=sys.stderr)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    sys.exit(1 if failed else 0)


main()
