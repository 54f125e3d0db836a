"""What a step of one token costs in Python: the cache of bench/interfaces.cpp, one layer, few tokens, f16.

    python bench/interfaces.py [--repetitions 9]

Prints the median over repetitions of a step's microseconds, begin, append_kv, attend, commit in all.
"""

import argparse
import statistics
import time

import numpy as np

import xquant

HEADS, KV_HEADS, HEAD_DIM, FIRST, MOST, STEPS = 9, 3, 64, 16, 64, 4800


def step(cache, sequence, k, v, q):
    with cache.step({sequence: len(k)}) as made:
        made.append_kv(0, k, v)
        return made.attend(0, q)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=9, help=f"of {STEPS} steps (9)")
    repetitions = parser.parse_args().repetitions
    frequencies = xquant.rope_frequencies(HEAD_DIM)
    layer = xquant.Layer(HEADS, KV_HEADS, HEAD_DIM, input="keys_before_rope", inverse_frequencies=frequencies)
    cache = xquant.Cache("f16", [layer])
    random = np.random.default_rng(1)
    k, v, q = (random.standard_normal((FIRST, n * HEAD_DIM)).astype(np.float32) for n in (KV_HEADS, KV_HEADS, HEADS))
    times = []
    for _ in range(repetitions):
        seconds = 0.0
        for _ in range(STEPS // (MOST - FIRST)):
            sequence = cache.create()
            step(cache, sequence, k, v, q)
            start = time.perf_counter()
            for _ in range(MOST - FIRST):
                out = step(cache, sequence, k[:1], v[:1], q[:1])
            seconds += time.perf_counter() - start
        if not np.abs(out).max() > 0:
            raise SystemExit("attention answered zeros")
        times.append(1e6 * seconds / STEPS)
    print(f"step/python {statistics.median(times):.2f} us (of {repetitions}: {min(times):.2f} to {max(times):.2f})")


if __name__ == "__main__":
    main()
