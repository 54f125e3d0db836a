"""What xquant.transformers does that needs neither PyTorch nor transformers: batches with padding, and RoPE taken back.

tests/python/torch has the tests with a model; tools/test --torch runs them.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

import numpy as np

import xquant
from xquant import _rope
from xquant._batch import Batch

HEADS, KV_HEADS, HEAD_DIM, LAYERS = 4, 2, 32, 2
FREQUENCIES = np.asarray(xquant.rope_frequencies(HEAD_DIM, 1e4))


def make_cache(scheme="f16", **settings):
    layer = xquant.Layer(HEADS, KV_HEADS, HEAD_DIM, input="keys_before_rope", inverse_frequencies=list(FREQUENCIES))
    return xquant.Cache(scheme, LAYERS * [layer], **({"recent": 16} | settings))


def rows(seed, shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


class Text:
    """Rows of a text, each token's own: Q [n, H, Dh], K and V [n, Hkv, Dh] of each layer."""

    def __init__(self, seed, n=64):
        self.q, self.k, self.v = (
            [rows([seed, layer, what], (n, heads, HEAD_DIM)) for layer in range(LAYERS)]
            for what, heads in enumerate((HEADS, KV_HEADS, KV_HEADS))
        )


def feed(batch, texts, columns, mask=None, positions=None):
    """Gives each row the next tokens of its text; answers of the last layer [rows, columns, H * Dh], 0 for padding."""
    before = [len(s) for s in batch.sequences] or len(texts) * [0]
    batch.begin(len(texts), columns, mask, positions)
    real = np.ones((len(texts), columns), bool) if mask is None else np.asarray(mask, bool)[:, -columns:]
    out = np.zeros((len(texts) * columns, HEADS * HEAD_DIM), np.float32)
    for layer in range(LAYERS):
        of = [
            [x[layer][b : b + r.sum()] for t, b, r in zip(texts, before, real) for x in [getattr(t, name)]]
            for name in "qkv"
        ]
        q, k, v = (np.concatenate(part) for part in of)
        batch.append(layer, k, v)
        answers = batch.attend(layer, q)
    if answers is not None:
        out[slice(None) if batch.tokens is None else batch.tokens] = answers
    batch.commit()
    return out.reshape(len(texts), columns, -1)


def alone(text, steps):
    """Answers of a text by itself, [tokens, H * Dh]."""
    batch = Batch(make_cache())
    return np.concatenate([feed(batch, [text], n)[0] for n in steps])


class Batches(unittest.TestCase):
    def test_rows_with_padding_answer_as_they_do_alone(self):
        texts, batch = [Text(1), Text(2), Text(3)], Batch(make_cache())
        mask = np.array([[1] * 7, [0] * 3 + [1] * 4, [1] * 2 + [0] * 5])  # none, left, right
        first = feed(batch, texts, 7, mask)
        mask = np.concatenate([mask, np.ones((3, 1))], 1)
        second = feed(batch, texts, 1, mask)
        self.assertEqual((batch.columns, [len(s) for s in batch.sequences]), (8, [8, 5, 3]))
        for row, n in enumerate((7, 4, 2)):
            expected = alone(texts[row], [n, 1])
            np.testing.assert_allclose(first[row][mask[row, :7] > 0], expected[:-1], atol=1e-5)
            np.testing.assert_allclose(second[row], expected[-1:], atol=1e-5)
            self.assertGreater(np.abs(expected).max(), 0.5)
        self.assertTrue((first[1, :3] == 0).all())

    def test_padding_alone(self):
        batch, texts = Batch(make_cache()), [Text(1), Text(2)]
        self.assertTrue((feed(batch, texts, 3, np.zeros((2, 3))) == 0).all())
        out = feed(batch, texts, 2, np.array([[0, 0, 0, 1, 1], [0, 0, 0, 0, 1]]))
        np.testing.assert_allclose(out[0], alone(texts[0], [2]), atol=1e-5)
        self.assertEqual([len(s) for s in batch.sequences], [2, 1])

    def test_positions(self):
        batch, texts = Batch(make_cache()), [Text(1), Text(2)]
        mask = np.array([[1, 1, 1], [0, 1, 1]])
        feed(batch, texts, 3, mask, np.array([[0, 1, 2]]))  # counted with padding
        self.assertEqual([s.next_position for s in batch.sequences], [3, 3])
        self.assertEqual(batch.sequences[1].position_of(0), 1)
        with self.assertRaisesRegex(xquant.ShapeError, "row 1 goes on at position 2; the 2 tokens .* before 3"):
            batch.begin(2, 1, np.ones((2, 1)), np.array([[3], [2]]))
        with self.assertRaisesRegex(xquant.ShapeError, r"positions of row 1 are \[3, 5\]"):
            batch.begin(2, 2, np.ones((2, 2)), np.array([[3, 4], [3, 5]]))
        self.assertEqual((batch.columns, [len(s) for s in batch.sequences]), (3, [3, 2]))
        feed(batch, texts, 1, np.ones((2, 1)), np.array([[5], [3]]))  # a gap
        self.assertEqual([s.position_of(len(s) - 1) for s in batch.sequences], [5, 3])

    def test_a_step_that_there_is_no_room_for_changes_nothing(self):
        batch = Batch(make_cache(budget=200_000))
        feed(batch, [Text(1)], 4)
        with self.assertRaises(xquant.BudgetError):
            batch.begin(1, 4000, None, 10 + np.arange(4000)[None])
        self.assertEqual((batch.columns, batch.sequences[0].next_position), (4, 4))

    def test_masks_that_do_not_fit(self):
        batch, texts = Batch(make_cache()), [Text(1), Text(2)]
        feed(batch, texts, 3, np.array([[1, 1, 1], [0, 1, 1]]))
        with self.assertRaisesRegex(xquant.ShapeError, "1 of the cache's columns are padding"):
            batch.begin(2, 1)
        with self.assertRaisesRegex(xquant.ShapeError, "column 0 of row 1, which is in the cache as padding"):
            batch.begin(2, 1, np.ones((2, 4)))
        with self.assertRaisesRegex(xquant.ShapeError, r"\[2, 5\]; expected \[2, 1\] .* or \[2, 4\]"):
            batch.begin(2, 1, np.ones((2, 5)))
        with self.assertRaisesRegex(xquant.ShapeError, "a batch of 3 rows; the cache has 2"):
            batch.begin(3, 1)
        with self.assertRaisesRegex(xquant.StateError, "without a step"):
            batch.commit()

    def test_crop_counts_columns(self):
        texts, batch = [Text(1), Text(2)], Batch(make_cache())
        feed(batch, texts, 6, np.array([[1] * 6, [0] * 4 + [1] * 2]))
        batch.crop(0)
        batch.crop(3)
        self.assertEqual((batch.columns, [len(s) for s in batch.sequences]), (3, [3, 0]))
        out = feed(batch, texts, 2, np.array([[1] * 5, [0] * 3 + [1] * 2]))
        for row, (n, expected) in enumerate(zip((3, 0), (alone(texts[0], [3, 2])[3:], alone(texts[1], [2])))):
            np.testing.assert_allclose(out[row], expected, atol=1e-5)
        with self.assertRaisesRegex(xquant.ShapeError, "6 columns .* the cache has 5"):
            batch.crop(6)

    def test_crop_behind_a_window(self):
        layer = xquant.Layer(HEADS, KV_HEADS, HEAD_DIM, input="keys_before_rope", window=64)
        batch = Batch(xquant.Cache("f16", LAYERS * [layer], recent=16))
        for n in (1000, 1):
            feed(batch, [Text(1, 1001)], n)
        with self.assertRaisesRegex(xquant.ShapeError, "of 1001 tokens is to be cut to 201"):
            batch.crop(800)
        self.assertEqual((batch.columns, len(batch.sequences[0])), (1001, 1001))

    def test_a_step_that_is_abandoned_changes_nothing(self):
        texts, batch = [Text(1)], Batch(make_cache())
        feed(batch, texts, 5)
        batch.begin(1, 4)
        batch.append(0, texts[0].k[0][:4], texts[0].v[0][:4])
        batch.abandon()
        np.testing.assert_allclose(feed(batch, texts, 2)[0], alone(texts[0], [5, 2])[5:], atol=1e-5)

    def test_beams(self):
        texts, batch = [Text(1), Text(2), Text(3)], Batch(make_cache("kv8"))
        feed(batch, texts, 6, np.array([[1] * 6, [0] * 4 + [1] * 2, [0] + [1] * 5]))
        batch.select([1, 1, 0])
        self.assertEqual([len(s) for s in batch.sequences], [2, 2, 6])
        self.assertEqual(batch.real.sum(1).tolist(), [2, 2, 6])
        out = feed(batch, [texts[1], texts[1], texts[0]], 1, np.concatenate([batch.real, np.ones((3, 1))], 1))
        np.testing.assert_array_equal(out[0], out[1])
        np.testing.assert_allclose(out[2], alone(texts[0], [6, 1])[-1:], atol=0.02)
        batch.select([2])
        self.assertEqual(len(batch.sequences), 1)
        batch.select([0, 0, 0, 0])
        self.assertEqual([len(s) for s in batch.sequences], 4 * [7])
        with self.assertRaisesRegex(xquant.ShapeError, r"\[0, 4\] are asked for; the cache has 4"):
            batch.select([0, 4])
        batch.reset()
        self.assertEqual((batch.columns, batch.sequences), (0, []))

    def test_files(self):
        texts, caches = [Text(1), Text(2)], [make_cache("kv4"), make_cache("kv4")]
        saved, loaded = (Batch(cache) for cache in caches)
        feed(saved, texts, 40, np.concatenate([np.tile([[1], [0]], (1, 30)), np.ones((2, 10))], 1))
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "batch.xq"
            saved.save(path)
            loaded.load(path)
            np.testing.assert_array_equal(loaded.real, saved.real)
            mask = np.concatenate([saved.real, np.ones((2, 1))], 1)
            np.testing.assert_array_equal(feed(loaded, texts, 1, mask), feed(saved, texts, 1, mask))
            caches[0].save(saved.sequences, str(path), "a note")
            with self.assertRaisesRegex(xquant.MismatchError, "Batch.save did not write it"):
                loaded.load(path)
            caches[0].save(saved.sequences, str(path), json.dumps({"rows_columns": [2, 8], "real": "//8="}))
            with self.assertRaisesRegex(xquant.MismatchError, r"\[8, 8\] tokens, sequences of \[41, 11\]"):
                loaded.load(path)
        self.assertEqual(loaded.columns, 41)


def tables(rope, positions):
    """Cosines and sines [n, pairs or 2 * pairs] as a program has them."""
    repeated = {
        "once": lambda t: t,
        "halves": lambda t: np.concatenate([t, t], -1),
        "interleaved": lambda t: np.repeat(t, 2, -1),
    }
    return [repeated[rope.layout](t) for t in rope.expected(positions)]


def turned(k, rope, positions):
    """k [n, Hkv, Dh] after RoPE, by complex numbers."""
    pairs, angles = rope.pairs, np.multiply.outer(positions, rope.frequencies)[:, None]
    first, second = _rope.pair_channels(rope.pairing, pairs)
    z = (k[..., first] + 1j * k[..., second]) * rope.factor * np.exp(1j * angles)
    out = k.copy()
    out[..., first], out[..., second] = z.real, z.imag
    return out


class Ropes(unittest.TestCase):
    def ropes(self):
        for pairing in _rope.PAIRINGS:
            for layout in _rope.LAYOUTS:
                for factor, part in ((1.0, 1), (1.2, 2)):
                    yield _rope.Rope(pairing, layout, FREQUENCIES[: HEAD_DIM // 2 // part] ** part, factor)

    def test_it_is_found_and_taken_back(self):
        k, positions = rows(1, (8, KV_HEADS, HEAD_DIM)).astype(np.float64), np.arange(1, 9)
        for rope in self.ropes():
            still, moved = turned(k, rope, 0 * positions), turned(k, rope, positions)
            others = [FREQUENCIES[:4], 1.3 * rope.frequencies]
            found = _rope.find_rope(still, moved, *tables(rope, positions), positions, [*others, rope.frequencies])
            self.assertEqual((found.pairing, found.layout), (rope.pairing, rope.layout))
            self.assertAlmostEqual(found.factor, rope.factor)
            np.testing.assert_array_equal(found.frequencies, rope.frequencies)
            for target in _rope.PAIRINGS:
                c, s = (found.one_of_each(t)[:, None] for t in tables(rope, positions))
                back = _rope.turn_back(moved, *_rope.inverse(c, s), rope.pairing, target, np.empty_like(k))
                expected = _rope.lay_out(k, rope.pairs, rope.pairing, target, np.empty_like(k))
                np.testing.assert_allclose(back, expected, atol=1e-12)
                self.assertEqual(np.abs(expected - k).max() > 0.1, target != rope.pairing)

    def test_other_ways_are_refused(self):
        k, positions = rows(1, (8, KV_HEADS, HEAD_DIM)), np.arange(1, 9)
        rope = next(self.ropes())
        cos_sin, moved = tables(rope, positions), turned(k, rope, positions)
        with self.assertRaisesRegex(xquant.MismatchError, "not RoPE of one position"):
            _rope.find_rope(k, turned(k, rope, -positions), *cos_sin, positions, [rope.frequencies])
        with self.assertRaisesRegex(xquant.MismatchError, "1 lists of them, cosines of 16 channels"):
            _rope.find_rope(k, moved, *cos_sin, positions, [1.3 * rope.frequencies])
        c, s = rope.expected([4000, 5000])
        _rope.check_tables(rope, c, s, [4000, 5000])
        with self.assertRaisesRegex(xquant.ShapeError, "positions 4000 .. 5001"):
            _rope.check_tables(rope, c, s, [4000, 5001])


class Import(unittest.TestCase):
    def test_without_transformers_it_says_what_is_missing(self):
        code = "import sys; sys.modules['torch'] = None; import xquant.transformers"
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        self.assertNotEqual(ran.returncode, 0)
        self.assertIn("xquant.transformers needs PyTorch and transformers 5.24", ran.stderr)


if __name__ == "__main__":
    unittest.main()
