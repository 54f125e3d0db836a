"""Caches of several schemes beside an exact one, on random keys and values: bytes, errors, and a plot of both.

    pip install bindings/python matplotlib && python examples/python/decode.py [--plot decode.png]
"""

import argparse

import numpy as np

import xquant

HEADS, KV_HEADS, HEAD_DIM, LAYERS, PROMPT, DECODED = 9, 3, 64, 4, 2000, 20


def decode(scheme):
    """Feeds a prompt and then token by token; the answers to the last token [L, H * Dh], and the cache's bytes."""
    layer = xquant.Layer(
        HEADS, KV_HEADS, HEAD_DIM, input="keys_before_rope", inverse_frequencies=xquant.rope_frequencies(HEAD_DIM, 1e5)
    )
    cache = xquant.Cache(scheme, LAYERS * [layer], recent=0, strict=True, threads=0)
    sequence = cache.create()
    random = np.random.default_rng(0)  # equal rows for every scheme
    loud = 1 + 9 * (random.random(KV_HEADS * HEAD_DIM) < 0.05)  # a few channels of K are large, as in models
    for n in [PROMPT] + DECODED * [1]:
        with cache.step({sequence: n}) as step:
            answers = []
            for i in range(LAYERS):
                k = (random.standard_normal((n, KV_HEADS * HEAD_DIM)) * loud).astype(np.float32)
                v = random.standard_normal((n, KV_HEADS * HEAD_DIM)).astype(np.float32)
                step.append_kv(i, k, v)
                answers.append(step.attend(i, random.standard_normal((n, HEADS * HEAD_DIM)).astype(np.float32))[-1])
    return np.stack(answers), cache.bytes()["stored"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schemes", default="kv8,kv4,q4_0,nf4,kivi4,kivi3,kivi2", help="names, with commas between")
    parser.add_argument("--plot", help="a picture to write; needs matplotlib")
    arguments = parser.parse_args()

    print(f"xquant {xquant.__version__}, {xquant.level()[0]}")
    exact, f16_bytes = decode("f16")
    found = []
    for scheme in arguments.schemes.split(","):
        answers, stored = decode(scheme)
        error = np.linalg.norm(answers - exact) / np.linalg.norm(exact)
        found.append((scheme, stored / f16_bytes, error))
        print(f"{scheme:10s} {stored:10,d} bytes, {f16_bytes / stored:5.2f} x smaller than f16; error {error:.4f}")

    if arguments.plot:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(6, 4), constrained_layout=True)
        for scheme, share, error in found:
            axes.plot(share, error, "o", color="tab:blue")
            below = -14 if scheme.startswith("kv") else 6
            axes.annotate(scheme, (share, error), xytext=(0, below), textcoords="offset points", ha="center")
        axes.set(
            yscale="log",
            xlabel="bytes, as a share of f16",
            ylabel="error of the answers, relative",
            title="random rows, a few loud channels of K",
        )
        axes.margins(0.1)
        axes.grid(alpha=0.3)
        figure.savefig(arguments.plot, dpi=130)
        print(f"plot: {arguments.plot}")


if __name__ == "__main__":
    main()
