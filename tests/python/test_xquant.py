"""What a Python program sees of xquant: arrays, sequences, steps, errors, files. Needs the package and NumPy alone.

python -m unittest discover -s tests/python -v
"""

import gc
import json
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
import unittest

import numpy as np

import xquant

HEADS, KV_HEADS, HEAD_DIM, LAYERS = 6, 2, 64, 2


def layer(**changed):
    settings = {"input": "keys_before_rope", "inverse_frequencies": xquant.rope_frequencies(HEAD_DIM)} | changed
    return xquant.Layer(HEADS, KV_HEADS, HEAD_DIM, **settings)


def random_rows(seed, n, heads, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal((n, heads, HEAD_DIM)).astype(dtype)


def turned(x, positions):
    """RoPE on pairs (2j, 2j + 1) of x [n, heads, Dh]."""
    angles = positions[:, None, None] * np.asarray(xquant.rope_frequencies(HEAD_DIM))
    pairs = x.reshape(*x.shape[:2], -1, 2)
    c, s = np.cos(angles), np.sin(angles)
    a, b = pairs[..., 0], pairs[..., 1]
    return np.stack([a * c - b * s, a * s + b * c], -1).reshape(x.shape)


def exact(q, k, v, first):
    """Causal attention [rows, H * Dh] in float64; q [rows, H, Dh] after RoPE stands at `first` and behind."""
    n, group = len(k), HEADS // KV_HEADS
    k = turned(k.astype(np.float64), np.arange(n))
    out = np.empty((len(q), HEADS, HEAD_DIM))
    for h in range(HEADS):
        scores = q[:, h].astype(np.float64) @ k[:, h // group].T / np.sqrt(HEAD_DIM)
        scores[np.arange(n)[None] > first + np.arange(len(q))[:, None]] = -np.inf
        p = np.exp(scores - scores.max(1, keepdims=True))
        out[:, h] = p / p.sum(1, keepdims=True) @ v[:, h // group]
    return out.reshape(len(q), -1)


def feed(cache, sequence, n, seed=1, dtype=np.float32):
    """Adds n random tokens; returns the answers of the last layer."""
    with cache.step({sequence: n}) as step:
        for i in range(LAYERS):
            k, v = random_rows(seed + 10 * i, n, KV_HEADS, dtype), random_rows(seed + 10 * i + 1, n, KV_HEADS, dtype)
            step.append_kv(i, k, v)
            out = step.attend(i, random_rows(seed + 10 * i + 2, n, HEADS))
    return out


class Attention(unittest.TestCase):
    def test_answers_are_those_of_exact_attention(self):
        cache = xquant.Cache("f16", LAYERS * [layer()], recent=16)
        sequence = cache.create()
        k, v, q = random_rows(1, 300, KV_HEADS), random_rows(2, 300, KV_HEADS), random_rows(3, 300, HEADS)
        q = turned(q, np.arange(300)).astype(np.float32)
        with cache.step({sequence: 300}) as step:
            self.assertEqual(len(step), 300)
            for i in range(LAYERS):
                step.append_kv(i, k, v)
                out = step.attend(i, q)
        self.assertEqual((out.shape, out.dtype), ((300, HEADS * HEAD_DIM), np.float32))
        expected = exact(q, k, v, 0)
        self.assertLess(np.abs(out - expected).max(), 5e-3)
        self.assertGreater(np.abs(expected).max(), 1)
        whole = cache.attend(0, [(sequence, 1)], q[-1:])
        np.testing.assert_allclose(whole, expected[-1:], atol=5e-3)

    def test_codes_are_near_and_smaller(self):
        exact_cache, cache = (xquant.Cache(name, LAYERS * [layer()], recent=16, strict=True) for name in ("f16", "kv4"))
        sequences = [exact_cache.create(), cache.create()]
        answers = [feed(c, s, 500) for c, s in zip((exact_cache, cache), sequences)]
        off = np.linalg.norm(answers[0] - answers[1]) / np.linalg.norm(answers[0])
        self.assertGreater(off, 1e-3)
        self.assertLess(off, 0.2)
        self.assertGreater(exact_cache.bytes()["stored"], 2.5 * cache.bytes()["stored"])
        self.assertEqual(
            xquant.predict("kv4", LAYERS * [layer()], 500, recent=16, strict=True)["codes"], cache.bytes()["codes"]
        )

    def test_x_and_weights(self):
        rng = np.random.default_rng(7)
        width = 128
        w_k, w_v = (rng.standard_normal((KV_HEADS * HEAD_DIM, width)).astype(np.float32) / 11 for _ in range(2))
        of_x = xquant.Cache("x4", [layer(width=width, input="x", w_k=w_k, w_v=w_v)], weights="float32")
        of_kv = xquant.Cache("f16", [layer()])
        a, b = of_x.create(), of_kv.create()
        x, q = rng.standard_normal((200, width)).astype(np.float32), random_rows(3, 200, HEADS)
        with of_x.step([(a, 200)]) as first, of_kv.step([(b, 200)]) as second:
            first.append(0, x)
            second.append_kv(0, x @ w_k.T, x @ w_v.T)
            difference = first.attend(0, q) - second.attend(0, q)
        self.assertLess(np.abs(difference).max(), 0.2)

    def test_threads_change_nothing(self):
        caches = [xquant.Cache("kv4", LAYERS * [layer()], threads=n) for n in (1, 3)]
        answers = [feed(c, c.create(), 600) for c in caches]
        np.testing.assert_array_equal(answers[0], answers[1])

    def test_other_threads_run_meanwhile(self):
        cache = xquant.Cache("kv4", LAYERS * [layer()])
        sequence = cache.create()
        feed(cache, sequence, 1000)
        q = random_rows(5, 400, HEADS)
        started, done, turns = threading.Event(), threading.Event(), 0

        def attend():
            started.set()
            cache.attend(0, [(sequence, 400)], q)
            done.set()

        # Python itself changes threads after a minute; so only a call that lets go of the interpreter lets others run.
        interval = sys.getswitchinterval()
        sys.setswitchinterval(60)
        try:
            thread = threading.Thread(target=attend)
            thread.start()
            started.wait()
            while not done.is_set():
                turns += 1
                time.sleep(0)
        finally:
            sys.setswitchinterval(interval)
        thread.join()
        self.assertGreater(turns, 0)


class Arrays(unittest.TestCase):
    def setUp(self):
        self.cache = xquant.Cache("f16", [layer()])
        self.sequence = self.cache.create()

    def answer(self, k, v, q, **settings):
        step = self.cache.step({self.sequence: len(k)})
        step.append_kv(0, k, v)
        return step.attend(0, q, **settings)

    def test_types_and_strides(self):
        k, v, q = random_rows(1, 40, KV_HEADS), random_rows(2, 40, KV_HEADS), random_rows(3, 40, HEADS)
        k, v, q = (a.astype(np.float16).astype(np.float32) for a in (k, v, q))
        expected = self.answer(k, v, q)
        flat = [a.reshape(40, -1) for a in (k, v, q)]
        np.testing.assert_array_equal(self.answer(*flat), expected)
        np.testing.assert_array_equal(self.answer(*(a.astype(np.float16) for a in flat)), expected)
        both = np.concatenate([flat[0], flat[1]], 1)  # K and V side by side: rows are read where they lie
        width = KV_HEADS * HEAD_DIM
        np.testing.assert_array_equal(self.answer(both[:, :width], both[:, width:], flat[2]), expected)

    def test_out(self):
        k, v, q = random_rows(1, 40, KV_HEADS), random_rows(2, 40, KV_HEADS), random_rows(3, 40, HEADS)
        expected = self.answer(k, v, q)
        out = np.full((40, 2 * HEADS * HEAD_DIM), 7, np.float32)
        half = out[:, : HEADS * HEAD_DIM]
        returned = self.answer(k, v, q, out=half)
        np.testing.assert_array_equal(half, expected)
        np.testing.assert_array_equal(returned, expected)
        self.assertTrue((out[:, HEADS * HEAD_DIM :] == 7).all())
        with self.assertRaises(xquant.ShapeError):
            self.answer(k, v, q, out=np.empty((40, 3), np.float32))

    def test_refused(self):
        k, v, q = random_rows(1, 4, KV_HEADS), random_rows(2, 4, KV_HEADS), random_rows(3, 4, HEADS)
        with self.assertRaisesRegex(xquant.ShapeError, "float32, float16 or bfloat16"):
            self.answer(k.astype(np.float64), v, q)
        with self.assertRaisesRegex(xquant.ShapeError, "side by side"):
            self.answer(k.reshape(4, -1)[:, ::2], v, q)
        with self.assertRaisesRegex(xquant.ShapeError, r"v is \[4, 128\]"):
            self.answer(k[:3], v, q)
        k[2, 1, 3] = np.inf
        with self.assertRaisesRegex(xquant.NumberError, "finite"):
            self.answer(k, v, q)


class Sequences(unittest.TestCase):
    def setUp(self):
        self.cache = xquant.Cache("kv4", LAYERS * [layer()], recent=32)

    def test_verbs(self):
        a = self.cache.create()
        feed(self.cache, a, 300)
        b, c = a.fork(), a.fork(200)
        self.assertEqual([len(s) for s in (a, b, c)], [300, 300, 200])
        np.testing.assert_array_equal(feed(self.cache, a, 1, seed=5), feed(self.cache, b, 1, seed=5))
        b.truncate(280)
        b.erase(10, 40)
        self.assertEqual((len(b), b.next_position), (250, 250))
        b.shift(100, 7)
        b.shift(100, -3, end=120)
        self.assertEqual((b.next_position, b.position_of(100), b.position_of(120)), (257, 104, 127))
        b.next_position = 300
        b.erase(0, 5, keep_gap=True)
        self.assertEqual(b.next_position, 300)
        b.compact()
        b.seal()
        self.assertLessEqual(b.shortest_prefix, len(b))
        self.cache.gather([a, b], [1, 1])
        self.assertEqual(len(a), len(b))
        self.assertIn("245 tokens", repr(a))

    def test_a_sequence_is_dropped_with_its_last_reference(self):
        a = self.cache.create()
        feed(self.cache, a, 1000)
        before = self.cache.bytes()["stored"]
        del a
        gc.collect()
        self.assertLess(self.cache.bytes()["stored"], before / 4)
        b = self.cache.create()
        b.drop()
        self.assertIn("dropped", repr(b))
        with self.assertRaises(xquant.SequenceError):
            len(b)

    def test_a_step_that_raises_leaves_everything_as_it_was(self):
        a = self.cache.create()
        feed(self.cache, a, 50)
        with self.assertRaisesRegex(KeyError, "mine"):
            with self.cache.step({a: 10}) as step:
                step.append_kv(0, random_rows(1, 10, KV_HEADS), random_rows(2, 10, KV_HEADS))
                raise KeyError("mine")
        self.assertEqual(len(a), 50)
        with self.assertRaises(xquant.StateError):
            step.attend(0, random_rows(3, 10, HEADS))

    def test_drafts(self):
        a = self.cache.create()
        feed(self.cache, a, 50)
        with self.cache.step([(a, [-1, 0, 0])]) as step:
            for i in range(LAYERS):
                step.append_kv(i, random_rows(1, 3, KV_HEADS), random_rows(2, 3, KV_HEADS))
                step.attend(i, random_rows(3, 3, HEADS))
            step.commit([0, 2])
        self.assertEqual(len(a), 52)

    def test_batch(self):
        sequences = [self.cache.create() for _ in range(3)]
        for s, n in zip(sequences, (200, 50, 129)):
            feed(self.cache, s, n)
        alone = [s.fork() for s in sequences]
        q, k, v = random_rows(1, 6, HEADS), random_rows(2, 6, KV_HEADS), random_rows(3, 6, KV_HEADS)
        with self.cache.step(list(zip(sequences, (1, 2, 3)))) as step:
            for i in range(LAYERS):
                step.append_kv(i, k, v)
                out = step.attend(i, q)
        row = 0
        for s, n in zip(alone, (1, 2, 3)):
            with self.cache.step({s: n}) as step:
                for i in range(LAYERS):
                    step.append_kv(i, k[row : row + n], v[row : row + n])
                    answer = step.attend(i, q[row : row + n])
            np.testing.assert_allclose(answer, out[row : row + n], atol=1e-5)
            row += n


class Files(unittest.TestCase):
    def test_saved_sequences_answer_as_before(self):
        caches = [xquant.Cache("kv4", LAYERS * [layer()]) for _ in range(2)]
        a = caches[0].create()
        feed(caches[0], a, 300)
        data = caches[0].save_bytes([a], note="a note")
        (b,), note = caches[1].load_bytes(data)
        self.assertEqual(note, "a note")
        with tempfile.TemporaryDirectory() as folder:
            path = str(pathlib.Path(folder) / "prompt.xq")
            caches[0].save([a], path)
            (c,), _ = caches[1].load(path)
            answers = [feed(cache, s, 1, seed=9) for cache, s in zip(caches, (a, b))] + [feed(caches[1], c, 1, seed=9)]
        for answer in answers[1:]:
            np.testing.assert_array_equal(answer, answers[0])

    def test_refused(self):
        cache, other = (xquant.Cache(name, LAYERS * [layer()]) for name in ("kv4", "kv8"))
        a = cache.create()
        feed(cache, a, 300)
        data = bytearray(cache.save_bytes([a]))
        with self.assertRaises(xquant.MismatchError):
            other.load_bytes(bytes(data))
        data[-60] ^= 1
        with self.assertRaises(xquant.DamageError):
            cache.load_bytes(bytes(data))
        with self.assertRaises(xquant.DamageError):
            cache.load_bytes(bytes(data[:-100]))
        with self.assertRaisesRegex(OSError, "no/such"):
            cache.load("no/such/file")


class OtherCaches(unittest.TestCase):
    def test_a_sequence_goes_on_in_another_scheme(self):
        cold, fast = (xquant.Cache(name, LAYERS * [layer()]) for name in ("kivi4", "f16"))
        a = cold.create()
        feed(cold, a, 300)
        b = a.transcode(fast)
        self.assertEqual((len(a), len(b)), (300, 300))
        expected, found = feed(cold, a, 1, seed=9), feed(fast, b, 1, seed=9)
        self.assertGreater(np.abs(expected).max(), 0.1)
        np.testing.assert_allclose(found, expected, atol=0.01)
        turned = xquant.Cache("kv4", LAYERS * [layer()])
        c = turned.create()
        feed(turned, c, 10)
        with self.assertRaisesRegex(xquant.StateError, "after RoPE"):
            c.transcode(cold)


class Plans(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.machine = pathlib.Path(folder.name) / "machine.txt"

    def plan(self, *schemes, **settings):
        return xquant.plan(LAYERS * [layer()], list(schemes), machine=str(self.machine), **settings)

    def test_bytes_and_time_are_known_before_there_is_a_cache(self):
        f16, kv4, head4 = self.plan("f16", "kv4", "head4", context=5000, memory=3_000_000)
        self.assertEqual((f16.name, f16.fits, f16.divergence, f16.unavailable), ("f16", False, 0.0, ""))
        self.assertTrue(kv4.fits and 1_000_000 < kv4.bytes < f16.bytes / 2 and kv4.seconds > 0)
        self.assertEqual((kv4.divergence, kv4.dominated_by), (None, ""))
        self.assertIn("calibration", kv4.unknown)
        self.assertIn("statistics", head4.unavailable)
        cache = xquant.Cache("kv4", LAYERS * [layer()])
        a = cache.create()
        feed(cache, a, 5000)
        self.assertEqual(kv4.cache, cache.bytes()["stored"])
        written = self.machine.read_text()
        self.assertGreater(len(self.plan()), 20)  # all schemes
        self.assertEqual(self.machine.read_text(), written)
        with self.assertRaisesRegex(ValueError, "1 threads"):
            self.plan("kv4", threads=2)
        with self.assertRaisesRegex(xquant.ShapeError, "'kv44'"):
            self.plan("kv44")

    def command(self, *arguments):
        return subprocess.run([sys.executable, "-m", "xquant", *arguments], capture_output=True, text=True, check=False)

    def test_command_line(self):
        config = self.machine.with_name("config.json")
        shape = {"num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "hidden_size": 384}
        config.write_text(json.dumps(shape))
        plan = (
            "plan",
            "--machine",
            str(self.machine),
            "--schemes",
            "f16,kv4,head4",
            "--memory",
            "3M",
            "--context",
            "5000",
        )
        json_file = self.machine.with_name("plan.json")
        found = self.command(*plan, str(config), "--json", str(json_file))
        self.assertEqual(found.returncode, 0, found.stderr)
        self.assertRegex(found.stdout, r"(?m)^  f16 .*does not fit$")
        self.assertRegex(found.stdout, r"(?m)^  kv4 .* -$")
        self.assertIn("not available: head4: needs statistics", found.stdout)
        schemes = json.loads(json_file.read_text())["schemes"]
        self.assertEqual([s["name"] for s in schemes], ["f16", "kv4", "head4"])
        shown = self.command(*plan, "--layers", "2", "--heads", "6", "--kv-heads", "2", "--head-dim", "64")
        self.assertEqual(shown.stdout.splitlines()[:4], found.stdout.splitlines()[:4])

    def test_command_line_refuses(self):
        for arguments, words in (
            (("plan", "--layers", "2"), "heads, kv_heads not known"),
            (("plan", "no/such.json"), "no/such.json"),
            (("plan", "--layers", "2", "--heads", "5", "--kv-heads", "2", "--head-dim", "64"), "heads is 5"),
            (("plan", "--memory", "much"), "'much' is no number of bytes"),
            ((), "plan|schemes|level"),
        ):
            found = self.command(*arguments)
            self.assertNotEqual(found.returncode, 0, arguments)
            self.assertIn(words, found.stderr)
            self.assertNotIn("Traceback", found.stderr)
        self.assertIn("kivi4", self.command("schemes").stdout)
        self.assertIn(xquant.level()[1], self.command("level").stdout)


class Calibrators(unittest.TestCase):
    def learn(self, layers):
        """Of keys whose channels hang together, which is what there is to learn."""
        calibrator = xquant.Calibrator(layers, threads=2)
        for context in range(2):
            for i in range(LAYERS):
                q, k, v = (self.rows(10 * context + i, heads) for heads in (HEADS, KV_HEADS, KV_HEADS))
                calibrator.add_kv(i, k, v, q)
        self.assertEqual(calibrator.tokens, 2 * (512 - 4))
        return calibrator.finish()

    def rows(self, seed, heads):
        mixed = np.random.default_rng(99).standard_normal((HEAD_DIM, HEAD_DIM)) * np.geomspace(1, 1e-3, HEAD_DIM)[:, None]
        return (random_rows(seed + heads, 512, heads) @ mixed).astype(np.float32)

    def test_what_was_learnt_shrinks_errors(self):
        layers = LAYERS * [layer()]
        learnt = self.learn(layers)
        self.assertEqual((learnt.tokens, learnt.contexts), (1016, 2))
        with tempfile.TemporaryDirectory() as folder:
            path = str(pathlib.Path(folder) / "model.xqcal")
            learnt.save(path, layers)
            read = xquant.load_calibration(path, layers)
            with self.assertRaisesRegex(xquant.MismatchError, "of a model of 2 layers; this one has 1"):
                xquant.load_calibration(path, [layer()])
        answers = []
        for scheme, calibration in (("f16", None), ("kv4", None), ("head4:uniform", learnt), ("head4:uniform", read)):
            cache = xquant.Cache(scheme, layers, recent=0, strict=True, calibration=calibration)
            with cache.step({cache.create(): 512}) as step:
                for i in range(LAYERS):
                    step.append_kv(i, self.rows(70 + i, KV_HEADS), self.rows(80 + i, KV_HEADS))
                    out = step.attend(i, self.rows(90 + i, HEADS))
            answers.append(out)
        errors = [np.linalg.norm(a - answers[0]) for a in answers]
        self.assertLess(errors[2], 0.5 * errors[1])
        np.testing.assert_array_equal(answers[2], answers[3])

    def test_refused(self):
        with self.assertRaisesRegex(xquant.ShapeError, "keys_after_rope; a Calibrator learns from keys_before_rope"):
            xquant.Calibrator([layer(input="keys_after_rope")])
        calibrator = xquant.Calibrator([layer()])
        q, k = random_rows(1, 20, HEADS), random_rows(1, 20, KV_HEADS)
        with self.assertRaisesRegex(xquant.ShapeError, r"v is \[19, 128\]; expected \[20, 128\]"):
            calibrator.add_kv(0, k, k[:19], q)
        with self.assertRaisesRegex(xquant.ShapeError, "layer 1 of a model of 1"):
            calibrator.add_kv(1, k, k, q)
        with self.assertRaisesRegex(xquant.ShapeError, "a context of 5 tokens"):
            calibrator.add_kv(0, k[:5], k[:5], q[:5])
        k[3, 0, 1] = np.nan
        with self.assertRaisesRegex(xquant.NumberError, "not finite"):
            calibrator.add_kv(0, k, k, q)
        self.assertEqual(calibrator.tokens, 0)


class Errors(unittest.TestCase):
    def test_what_does_not_fit_says_so(self):
        with self.assertRaisesRegex(xquant.ShapeError, "'kv44'"):
            xquant.Cache("kv44", [layer()])
        with self.assertRaisesRegex(ValueError, "heads is 5"):
            xquant.Cache("kv4", [xquant.Layer(5, 2, 64, input="keys_before_rope")])
        with self.assertRaisesRegex(TypeError, "'sink'"):
            xquant.Cache("kv4", [layer()], sink=4)
        with self.assertRaisesRegex(xquant.ShapeError, "keys_before_rope"):
            layer(input="keys")
        with self.assertRaisesRegex(xquant.ShapeError, "no layers"):
            xquant.Cache("kv4", [])
        cache = xquant.Cache("kv4", [layer()], budget=100_000)
        a = cache.create()
        with self.assertRaisesRegex(xquant.BudgetError, "budget of 100000"):
            cache.step({a: 4000})
        self.assertTrue(issubclass(xquant.BudgetError, (xquant.Error, MemoryError)))
        self.assertEqual(len(a), 0)

    def test_lists(self):
        names = {s.name for s in xquant.schemes()}
        self.assertLessEqual({"f16", "kv4", "kivi4", "x4_rot"}, names)
        kv4 = next(s for s in xquant.schemes() if s.name == "kv4")
        self.assertIn(64, kv4.groups)
        self.assertFalse(kv4.needs_statistics)
        self.assertTrue(4 < kv4.bits_per_value < 5)
        self.assertIn(xquant.level()[0], ("x86-64", "x86-64-v3", "x86-64-v4", "base"))
        self.assertRegex(xquant.__version__, r"^\d+\.\d+\.\d+$")


if __name__ == "__main__":
    unittest.main()
