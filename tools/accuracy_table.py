#!/usr/bin/env python3
"""tools/accuracy_table.py RUN.json...: what `xquant-llm perplexity --json` measured, as Markdown tables on stdout.

One table for each file, under a heading that says what was measured. Standard errors are those of differences on the same tokens.
"""

import argparse
import json
import sys
from pathlib import Path


def load(path):
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        sys.exit(f"accuracy_table.py: {path}: {error}")


def percent(value):
    return f"{value:+.2f}" if abs(value) < 1000 else f"{value:+.1e}"


def table(run):
    scored = run["chunks"] * (run["context"] - 1 - run.get("first_scored", 0))
    yield (
        f"### {run['model']}, {run['chunks']} x {run['context']} tokens, {run['sinks']} sinks"
        + (f", tail {run['tail']}" if run["tail"] else ", no tail")
    )
    yield ""
    yield f"{scored} scored tokens of {run['text']} from token {run['offset']} on; exact perplexity {run['exact_perplexity']:.3f}."
    yield ""
    yield "| scheme | bits/token/layer | bytes/token | perplexity, % | +- | mean KLD | +- | 99.9 % KLD | top-1, % |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    for s in run["schemes"]:
        yield (
            f"| {s['name']} | {s['bits_per_token_layer']:.0f} | {s['bytes_per_token']:.0f} | {percent(s['delta_percent'])} | "
            f"{s['delta_percent_error']:.2f} | {s['kld_mean']:.5f} | {s['kld_mean_error']:.5f} | {s['kld_p999']:.3f} | "
            f"{100 * s['top1']:.1f} |"
        )
    yield ""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN.json")
    for path in parser.parse_args().runs:
        print("\n".join(table(load(path))))


if __name__ == "__main__":
    main()
