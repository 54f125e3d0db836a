#!/usr/bin/env python3
"""tests/golden/make_golden.py: writes tests/golden/data, the codes, scales and zeros that every backend must store.

    make_golden.py                     from the rows that lie in data/
    make_golden.py --check             writes nothing; fails if a file differs from what the formulas below give
    make_golden.py --rows FILE.npy     from new rows [layers, tokens, channels], rounded to f16 first

Needs numpy alone. The formulas are stated here a second time, one numpy line for each step, so that the C++ is checked
against something written independently. README.md beside this file describes the files.

All arithmetic is in f32 unless a line says float64.
"""

import argparse
import struct
import sys
from functools import reduce
from pathlib import Path

import numpy as np

DATA = Path(__file__).resolve().parent / "data"
F32_ROWS, F16_ROWS, CODES, PAGE = 1, 0, 2, 3  # kinds of file
TOKENS = 48  # of real rows in the per token cases
CHANNELS = 192  # of real rows in the per channel cases
PAGE_TOKENS, PAGE_WIDTH = 128, 80  # of the page: keys are the first 80 channels of X, values the next 80
ROTATED = 8  # tokens in the rotated cases
WIDTH = 160  # of edge rows: a group of 128 and one of 32


def f16(x):
    """x rounded to the nearest f16, ties to even, as f32."""
    return x.astype(np.float16).astype(np.float32)


# ------------ quantizers: x [groups, n] -> codes [groups, n], scales [groups], zeros [groups]
def affine(low, high, x, bits):
    top = np.float32(2**bits - 1)
    positive = np.float32(0)  # -0 + 0 is 0: neither number is ever -0
    zero = f16(low) + positive
    scale = np.maximum(f16((high - zero) / top), positive) + positive  # f16(low) may lie above high
    inverse = np.where(scale > 0, np.float32(1) / np.where(scale > 0, scale, np.float32(1)), np.float32(0))
    return np.clip(np.rint((x - zero) * inverse), 0, top), scale, zero


def minmax(x, bits):
    """The smallest value of a group has code 0, the largest the top code."""
    return affine(x.min(1, keepdims=True), x.max(1, keepdims=True), x, bits)


def clipped(x, bits):
    """As minmax with the range narrowed around its middle by 1, 0.95 .. 0.5, whichever leaves the least squared error;
    the wider one where two are equal. The squares are added up in float64, first value first."""
    low, high = x.min(1, keepdims=True), x.max(1, keepdims=True)
    middle, half = (low + high) / np.float32(2), (high - low) / np.float32(2)
    best = least = None
    for percent in range(100, 45, -5):
        reach = half * (np.float32(percent) / np.float32(100))
        trial = minmax(x, bits) if percent == 100 else affine(middle - reach, middle + reach, x, bits)
        codes, scale, zero = trial
        error = ((zero + scale * codes) - x).astype(np.float64)
        error = np.cumsum(error * error, axis=1)[:, -1:]  # cumsum adds in order, sum does not
        better = least is None or error < least
        best = trial if least is None else [np.where(better, new, old) for new, old in zip(trial, best)]
        least = error if least is None else np.where(better, error, least)
    return best


def ggml_q8_0(x, bits=8):
    """d = max |x| / 127, codes x / d rounded half away from zero, stored as code + 128. Blocks of 32."""
    d = np.abs(x).max(1, keepdims=True) / np.float32(127)
    inverse = np.where(d > 0, np.float32(1) / np.where(d > 0, d, np.float32(1)), np.float32(0))
    scaled = (x * inverse).astype(np.float64)  # so that + 0.5 is exact
    codes = np.copysign(np.floor(np.abs(scaled) + 0.5), scaled)
    return codes + 128, f16(d), -128 * f16(d)


def ggml_q4_0(x, bits=4):
    """d = extreme / -8, extreme the first value of largest magnitude; codes = min(15, trunc(x / d + 8.5)). Blocks of 32."""
    d = np.take_along_axis(x, np.abs(x).argmax(1)[:, None], 1) / np.float32(-8)
    inverse = np.where(d != 0, np.float32(1) / np.where(d != 0, d, np.float32(1)), np.float32(0))
    codes = np.minimum(15, np.trunc(x * inverse + np.float32(8.5)))
    return codes, f16(d), -8 * f16(d)


def per_token(x, group, quantizer, bits):
    """x [T, n] in groups along each row, the last one of what is left -> codes [T, n], scales and zeros [groups, T]."""
    parts = [quantizer(x[:, c : c + group], bits) for c in range(0, x.shape[1], group)]
    codes, scales, zeros = (np.concatenate(part, axis=1) for part in zip(*parts))
    return codes, scales.T, zeros.T


def per_channel(x, group, quantizer, bits):
    """x [T, n] in groups of tokens of one channel -> codes [T, n], scales and zeros [n, groups]."""
    parts = [quantizer(x[t : t + group].T, bits) for t in range(0, len(x), group)]
    codes, scales, zeros = (np.concatenate(part, axis=1) for part in zip(*parts))
    return codes.T, scales, zeros


# ------------ transforms, in float64
def sylvester(n):
    """Hadamard matrix of size n = 2^k in Sylvester's order, over sqrt(n): symmetric, and its own inverse."""
    return reduce(np.kron, [np.array([[1.0, 1.0], [1.0, -1.0]])] * (n.bit_length() - 1), np.eye(1)) / np.sqrt(n)


def cosine(m):
    """Orthonormal DCT-II [m, m]: row k, column j is c_k cos(pi (2j + 1) k / 2m)."""
    k, j = np.indices((m, m))
    return np.sqrt(np.where(k == 0, 1.0, 2.0) / m) * np.cos(np.pi * (2 * j + 1) * k / (2 * m))


def rotation(n, block=64):
    """Y = X rotation(n): Hadamard inside blocks of 64, DCT across them; block j of Y is sum_k C[k, j] X_k H64."""
    return np.kron(cosine(n // block), sylvester(block))


def head_hadamard(x, head=64):
    return (x.reshape(len(x), -1, head) @ sylvester(head)).reshape(x.shape)


# ------------ edge rows
def noise(n, seed):
    """n values in [-1, 1), bell-shaped: means of four draws of a linear congruential generator, the same everywhere."""
    state, out = seed, []
    for _ in range(4 * n):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        out.append((state >> 40) / 2**23 - 1)
    return np.float32(np.reshape(out, (n, 4)).mean(1))


def with_value(row, at, value):
    row = row.copy()
    row[at] = value
    return row


def edge_rows():
    """Name and row [160] of each case; README.md lists them by these names."""
    counter = np.arange(WIDTH, dtype=np.float32)
    constant = lambda value: np.full(WIDTH, value, np.float32)
    yield "all zero", constant(0)
    yield "constant, exact in f16", constant(1)
    yield "constant, f16 lies below it", constant(0.1)
    yield "constant, f16 lies above it: the scale would be negative", constant(0.3)
    yield "constant, negative", constant(-3.7)
    yield "constant, rounds up to the smallest f16 subnormal", constant(4e-8)
    yield "zeros of both signs and ones", np.where(counter % 3 == 0, np.float32(-0.0), np.where(counter % 3 == 1, 0, 1))
    yield "two values", np.where(counter % 2 == 0, np.float32(-0.37), np.float32(1.91))
    yield "noise", noise(WIDTH, 1)
    yield "noise of 1e-3 around 5", 5 + noise(WIDTH, 2) / 1000
    yield "noise and one value of 1e4", with_value(noise(WIDTH, 3), 77, 1e4)
    yield "noise and one value of -1e4 in the short group", with_value(noise(WIDTH, 4), 150, -1e4)
    yield "heavy tails", noise(WIDTH, 5) ** 7 * 100
    yield "f16 subnormals", counter * 2.0**-24
    yield "between f16 subnormals", noise(WIDTH, 6) * np.float32(1e-6)
    yield "f32 subnormals and ones", np.where(counter % 2 == 0, counter * np.float32(1e-41), np.float32(1))
    yield "largest f16, both signs", np.where(counter % 2 == 0, np.float32(65504), np.float32(-65504))
    yield "up to the largest f16", noise(WIDTH, 7) / np.abs(noise(WIDTH, 7)).max() * np.float32(65504)
    yield "noise and one largest f16", with_value(noise(WIDTH, 8), 3, 65504)
    yield "halfway between two f16, in the smallest and the largest value", with_value(
        with_value(noise(WIDTH, 9) / 2, [5, 140], -(1 + 2.0**-11)), [6, 141], 1 + 3 * 2.0**-11
    )
    for bits in (2, 3, 4, 5, 6, 8):
        top = 2**bits - 1
        ties = (counter % top) + np.float32(0.5)
        yield f"exact ties at {bits} bits", with_value(with_value(ties, [0, 128], 0), [1, 129], top)
    for bits in (2, 4, 8):
        # zero -1, scale the f16 next to 0.1: products that come out next to a tie, on either side of it.
        scale, top = np.float32(np.float16(0.1)), 2**bits - 1
        near = np.float32(-1) + scale * ((counter % top) + np.float32(0.5))
        near = np.where(counter % 3 == 0, near, np.nextafter(near, np.where(counter % 3 == 1, np.float32(9e9), np.float32(-9e9))))
        yield f"next to ties at {bits} bits", with_value(with_value(near, [0, 128], -1), [1, 129], np.float32(-1) + scale * top)
    yield "q8_0: exact ties", with_value((counter % 254) - np.float32(126.5), slice(0, None, 32), 127)
    yield "q4_0: exact ties, extreme -8", with_value((counter % 16) - np.float32(7.5), slice(0, None, 32), -8)
    yield "q4_0: exact ties, extreme 8 before -8", with_value(
        with_value((counter % 16) - np.float32(7.5), slice(3, None, 32), 8), slice(9, None, 32), -8
    )


def tiny_rows():
    """Rows of f32 subnormals alone. 1 / d overflows for q8_0 and q4_0 here, so ggml's formulas give nothing to compare."""
    counter = np.arange(WIDTH, dtype=np.float32)
    yield "f32 subnormals", counter * np.float32(1e-42)
    yield "f32 subnormals of both signs", (counter - 80) * np.float32(1e-41)
    yield "smallest normal f32", np.where(counter % 2 == 0, np.float32(2.0**-126), np.float32(-(2.0**-126)))


# ------------ a page, as docs/format.md draws it
def planes(codes, bits):
    """The codes of a group in planes of 8, 4, 2 and 1 bits, widest first: the planes' bytes."""
    codes, left, out = np.pad(codes.astype(np.uint8), (0, -len(codes) % 8)), bits, b""
    for width in (8, 4, 2, 1):
        if left >= width:
            left -= width
            # Byte j holds codes j, j + S, j + 2S ... from the lowest bits up.
            fields = (codes >> left & (2**width - 1)).reshape(8 // width, -1)
            out += np.bitwise_or.reduce([field << width * k for k, field in enumerate(fields)]).astype("u1").tobytes()
    return out


def aligned(content):
    return content + bytes(-len(content) % 64)


def section(groups, scales, zeros, bits):
    """One stream of a page: the codes of all groups, then scales and zeros."""
    codes = b"".join(planes(group, bits) for group in groups)
    return aligned(codes) + aligned(scales.astype("<f2").tobytes() + zeros.astype("<f2").tobytes())


def page_file(layers):
    """Keys at 3 bits per channel, values at 4 bits per token in groups of 64, of 128 tokens of each layer."""
    content = b""
    for x in layers:
        x = x[:PAGE_TOKENS].astype(np.float32)
        codes, scales, zeros = per_channel(x[:, :PAGE_WIDTH], PAGE_TOKENS, minmax, 3)
        content += section(codes.T, scales, zeros, 3)
        codes, scales, zeros = per_token(x[:, PAGE_WIDTH : 2 * PAGE_WIDTH], 64, minmax, 4)
        content += section([row for block in (codes[:, :64], codes[:, 64:]) for row in block], scales, zeros, 4)
    return struct.pack("<4s7I", b"XQG1", PAGE, PAGE_TOKENS, PAGE_WIDTH, 0, 0, 0, len(content)) + content


# ------------ files
def rows_file(x, dtype):
    header = struct.pack("<4s7I", b"XQG1", F16_ROWS if dtype == "<f2" else F32_ROWS, *x.shape, 0, 0, 0, 0)
    return header + x.astype(dtype).tobytes()


def codes_file(found, bits, shape):
    codes, scales, zeros = found
    assert codes.min() >= 0 and codes.max() < 2**bits and np.isfinite(scales).all() and np.isfinite(zeros).all()
    header = struct.pack("<4s7I", b"XQG1", CODES, *codes.shape, bits, *shape, scales.size)
    return header + codes.astype("u1").tobytes() + scales.astype("<f4").tobytes() + zeros.astype("<f4").tobytes()


def read_rows(path):
    content = path.read_bytes()
    magic, kind, rows, columns = struct.unpack_from("<4s3I", content)
    if magic != b"XQG1" or kind not in (F16_ROWS, F32_ROWS):
        sys.exit(f"{path}: not a file of rows")
    return np.frombuffer(content, "<f2" if kind == F16_ROWS else "<f4", rows * columns, 32).reshape(rows, columns)


def token_cases(x, ggml=True):
    for bits in (2, 3, 4, 5, 6, 8):
        yield f"minmax{bits}_token128", codes_file(per_token(x, 128, minmax, bits), bits, (1, 128))
    for group in (32, 64):
        yield f"minmax4_token{group}", codes_file(per_token(x, group, minmax, 4), 4, (1, group))
    for bits in (2, 3):
        yield f"clip{bits}_token128", codes_file(per_token(x, 128, clipped, bits), bits, (1, 128))
    if ggml:
        yield "q8_0", codes_file(per_token(x, 32, ggml_q8_0, 8), 8, (1, 32))
        yield "q4_0", codes_file(per_token(x, 32, ggml_q4_0, 4), 4, (1, 32))


def real_cases(x):
    yield from token_cases(x[:TOKENS])
    for bits in (2, 3, 4, 8):
        yield f"minmax{bits}_channel128", codes_file(per_channel(x[:, :CHANNELS], 128, minmax, bits), bits, (128, 1))
    some = x[:ROTATED].astype(np.float64)
    yield "rotation", rows_file(some @ rotation(x.shape[1]), "<f4")
    yield "head_hadamard", rows_file(head_hadamard(some), "<f4")


def files(layers):
    """layers {name: f16 rows} -> name and content of every file."""
    for layer, rows in layers.items():
        yield f"{layer}.rows", rows_file(rows, "<f2")
        for name, content in real_cases(rows.astype(np.float32)):
            yield f"{layer}.{name}", content
    yield "page.minmax3_channel128_minmax4_token64", page_file(list(layers.values())[:2])
    for name, rows, ggml in (("edge", edge_rows(), True), ("tiny", tiny_rows(), False)):
        x = np.float32([row for _, row in rows])
        yield f"{name}.rows", rows_file(x, "<f4")
        for case, content in token_cases(x, ggml):
            yield f"{name}.{case}", content
        yield f"{name}.minmax4_token53", codes_file(per_token(x, 53, minmax, 4), 4, (1, 53))  # ends in a group of 1


def same(stored, made):
    """Byte for byte; but sums of products (the f32 rows that are no input) only to the last bits."""
    if stored == made or stored[:32] != made[:32]:
        return stored == made
    a, b = (np.frombuffer(content, "<f4", offset=32) for content in (stored, made))
    return struct.unpack_from("<I", made, 4)[0] == F32_ROWS and np.allclose(a, b, rtol=1e-6, atol=1e-7)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, metavar="FILE.npy", help="new rows [layers, tokens, channels]")
    parser.add_argument("--layers", nargs="+", default=["0", "10", "29"], metavar="N", help="their layers (0 10 29)")
    parser.add_argument("--check", action="store_true", help="compare with data/ and write nothing")
    args = parser.parse_args()
    if args.rows:
        rows = np.load(args.rows).astype(np.float16)
        if rows.ndim != 3 or len(rows) != len(args.layers):
            parser.error(f"{args.rows} has shape {list(rows.shape)}, expected [{len(args.layers)}, tokens, channels]")
        layers = {f"layer{int(number):02}": row for number, row in zip(args.layers, rows)}
    else:
        layers = {path.stem: read_rows(path) for path in sorted(DATA.glob("layer*.rows"))}
        if not layers:
            parser.error(f"no layer*.rows in {DATA}; give --rows")
    made = dict(files(layers))
    if args.check:
        stored = {path.name: path.read_bytes() for path in DATA.iterdir()}
        wrong = [name for name in sorted(made.keys() | stored.keys()) if not same(stored.get(name, b""), made.get(name, b""))]
        for name in wrong:
            print(f"{name}: {'differs' if name in stored and name in made else 'missing' if name in made else 'not made here'}")
        print(f"{len(made)} files, {len(wrong)} wrong")
        return 1 if wrong else 0
    DATA.mkdir(exist_ok=True)
    for path in DATA.iterdir():
        path.unlink()
    for name, content in made.items():
        (DATA / name).write_bytes(content)
    print(f"{len(made)} files, {sum(map(len, made.values()))} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
