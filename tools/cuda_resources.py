#!/usr/bin/env python3
"""tools/cuda_resources.py < LOG: what `nvcc --resource-usage` said, as a Markdown table of kernels."""

import re
import subprocess
import sys


def kernel_of(symbol):
    name = subprocess.run(["c++filt", symbol], capture_output=True, text=True, check=True).stdout
    match = re.search(r"gpu::abi_\w+::(\w+(?:<[^>]*>)?)", name)
    if not match:
        return name.strip()
    short = re.sub(r"\([\w:]*Products\)(\d)", lambda products: ("none", "halves", "codes")[int(products[1])], match[1])
    return re.sub(r"(\d)u\b", r"\1", short)


def main():
    if sys.argv[1:] in (["-h"], ["--help"]):
        print(__doc__)
        return
    rows, symbol, arch, spills = {}, None, None, ("?", "?", "?")
    for line in sys.stdin:
        if match := re.search(r"Compiling entry function '([^']+)' for '(\w+)'", line):
            symbol, arch = match[1], match[2]
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            if symbol:
                spills = match.groups()
        elif match := re.search(r"Used (\d+) registers", line):
            if symbol:
                rows[(kernel_of(symbol), arch)] = (match[1], *spills)
                symbol = None
        elif re.search(r"\berror\b", line):
            sys.exit(line)
    if not rows:
        sys.exit("cuda_resources.py: nvcc said nothing about kernels")
    print("| kernel | architecture | registers | stack | spill stores | spill loads |")
    print("|---|---|---:|---:|---:|---:|")
    for (kernel, architecture), (registers, stack, stores, loads) in sorted(rows.items()):
        print(f"| {kernel} | {architecture} | {registers} | {stack} | {stores} | {loads} |")


main()
