"""RoPE as a program outside applies it, found out and taken back. Works on NumPy's arrays and torch's tensors alike.

A pair of channels (a, b) of a head at position p is turned into (a c - b s, b c + a s), c = factor cos(p f) and
s = factor sin(p f), f being the pair's inverse frequency.
"""

import dataclasses

import numpy as np

from ._core import MismatchError, ShapeError

PAIRINGS = ("halves", "interleaved")
LAYOUTS = ("once", "halves", "interleaved")


def pair_channels(pairing, pairs):
    """The channels of a head that hold first and second values of pairs: (j, j + pairs), or (2j, 2j + 1)."""
    if pairing == "halves":
        return slice(0, pairs), slice(pairs, 2 * pairs)
    return slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)


@dataclasses.dataclass(frozen=True)
class Rope:
    """RoPE of a layer's keys: pairing, the channels of a pair; layout, how a program's row of cosines repeats (once: it
    does not, halves: all pairs' and then all again, interleaved: each pair's twice); frequencies [pairs], factor."""

    pairing: str
    layout: str
    frequencies: np.ndarray
    factor: float

    @property
    def pairs(self):
        return len(self.frequencies)

    def one_of_each(self, table):
        """Of cosines or sines [..., pairs or 2 * pairs] those of each pair once: [..., pairs]."""
        return table if self.layout == "once" else table[..., pair_channels(self.layout, self.pairs)[0]]

    def expected(self, positions):
        """Cosines and sines [positions, pairs], the factor in them, in float64."""
        angles = np.asarray(positions, np.float64)[..., None] * self.frequencies
        return self.factor * np.cos(angles), self.factor * np.sin(angles)


def inverse(c, s):
    """What turn_back takes for cosines and sines [..., pairs] that keys were turned by: the inverse's entries."""
    square = c * c + s * s
    return c / square, s / square


def turn_back(k, c, s, pairing, target, out):
    """out [..., Dh] = k [..., Dh] before RoPE, its pairs laid out as `target` says; c, s [..., pairs]: inverse().

    Channels behind the pairs are copied. out may not share memory with k. One multiplication and addition in the type
    of k for each value: the error is one rounding or two of k's type."""
    pairs = c.shape[-1]
    a, b = pair_channels(pairing, pairs)
    first, second = pair_channels(target, pairs)
    out[..., first] = k[..., a] * c + k[..., b] * s
    out[..., second] = k[..., b] * c - k[..., a] * s
    out[..., 2 * pairs :] = k[..., 2 * pairs :]
    return out


def lay_out(x, pairs, pairing, target, out):
    """out [..., Dh] = x [..., Dh], its pairs laid out as `target` says in place of `pairing`."""
    for to, of in zip(pair_channels(target, pairs), pair_channels(pairing, pairs)):
        out[..., to] = x[..., of]
    out[..., 2 * pairs :] = x[..., 2 * pairs :]
    return out


def find_rope(still, turned, cos, sin, positions, candidates, tolerance=1e-2):
    """The RoPE by which a program made `turned` [n, Hkv, Dh] of keys that are `still` [n, Hkv, Dh] at position 0.

    cos, sin [n, R]: what it multiplied by at positions [n]. candidates: arrays of inverse frequencies, of which those
    are taken that explain cos and sin. tolerance: the largest error, as a share of the largest value. Raises
    MismatchError where the keys were turned in another way."""
    still, turned, cos, sin = (np.asarray(a, np.float64) for a in (still, turned, cos, sin))
    for layout in LAYOUTS:
        for frequencies in candidates:
            if len(frequencies) * (1 if layout == "once" else 2) != cos.shape[-1]:
                continue
            rope = Rope(PAIRINGS[0], layout, np.asarray(frequencies, np.float64), 1.0)
            c, s = rope.one_of_each(cos), rope.one_of_each(sin)
            factor = float(np.sqrt(c * c + s * s).mean())
            rope = dataclasses.replace(rope, factor=factor)
            if max(np.abs(a - b).max() for a, b in zip((c, s), rope.expected(positions))) > tolerance * factor:
                continue
            for pairing in PAIRINGS:
                c_back, s_back = (a[:, None] for a in inverse(c, s))
                back = turn_back(turned, c_back, s_back, pairing, pairing, np.empty_like(turned))
                back[..., : 2 * rope.pairs] *= factor
                if np.abs(back - still).max() <= tolerance * np.abs(still).max():
                    return dataclasses.replace(rope, pairing=pairing)
    raise MismatchError(
        f"keys [{turned.shape[-2]}, {turned.shape[-1]}] of a token are turned in a way that is not RoPE of one "
        f"position a token with the model's inverse frequencies ({len(candidates)} lists of them, cosines of "
        f"{cos.shape[-1]} channels)"
    )


def check_tables(rope, c, s, positions, tolerance=5e-2):
    """Raises ShapeError unless cosines and sines [n, pairs] are those of positions [n]: RoPE whose frequencies change
    with the length of a text, or that has several positions a token, cannot be served."""
    off = max(np.abs(np.asarray(a, np.float64) - b).max() for a, b in zip((c, s), rope.expected(positions)))
    if not off <= tolerance * rope.factor:
        raise ShapeError(
            f"RoPE at positions {positions[0]} .. {positions[-1]} is off by {off:.3g} from the frequencies that the "
            "model had at positions 1 .. 8: frequencies that change with the length are not served"
        )
