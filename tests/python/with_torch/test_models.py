"""xquant.transformers on small models of many architectures, whose weights are drawn: needs PyTorch and transformers.

tools/test --torch
"""

import pathlib
import tempfile
import unittest

import torch
import transformers

import xquant
import xquant.transformers
from xquant.transformers._calibrate import _Listening

torch.set_num_threads(1)  # the models are tiny
COMMON = {
    **{"vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512, "initializer_range": 0.2},
    **{"pad_token_id": None, "bos_token_id": None, "eos_token_id": None},
}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
# Settings beside COMMON, and what is to be found: pairing, cosines, pairs, windows.
ARCHITECTURES = {
    "Llama": ({}, ("halves", "halves", 16), [0, 0, 0]),
    "Qwen3": ({}, ("halves", "halves", 16), [0, 0, 0]),  # keys with a norm
    "Glm": ({"partial_rotary_factor": 0.5}, ("interleaved", "halves", 8), [0, 0, 0]),
    "Cohere": ({}, ("interleaved", "interleaved", 16), [0, 0, 0]),
    "Gemma2": ({"sliding_window": 8, "attn_logit_softcapping": 5.0}, ("halves", "halves", 16), [8, 0, 8]),
    "Gemma3": ({"sliding_window": 8, "layer_types": MIXED}, ("halves", "halves", 16), [8, 0, 8]),  # two kinds of RoPE
    "Mistral": ({"sliding_window": 8}, ("halves", "halves", 16), [8, 8, 8]),
    "Phi3": ({}, ("halves", "halves", 16), [0, 0, 0]),  # one matrix for Q, K and V
    "GPTNeoX": ({}, ("halves", "halves", 4), [0, 0, 0]),
    "GptOss": (
        {"sliding_window": 8, "num_local_experts": 2, "num_experts_per_tok": 1},
        ("halves", "once", 16),
        [8, 0, 8],
    ),
    "OPT": ({}, None, [0, 0, 0]),
}


def make_model(name="Llama", **changed):
    torch.manual_seed(0)
    config = getattr(transformers, name + ("TextConfig" if name == "Gemma3" else "Config"))(**COMMON | changed)
    return getattr(transformers, name + "ForCausalLM")(config).eval()


def tokens(rows=2, columns=40, seed=1):
    return torch.randint(3, 96, (rows, columns), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model, steps=(30, 1, 9), padded=5):
    """Of two rows, the second with padding in front, token rows alone [tokens, vocabulary]; fed in steps."""
    ids, cache, out, begin = tokens(), None, [], 0
    mask = torch.ones_like(ids)
    mask[1, :padded] = 0
    for n in steps:
        end = begin + n
        found = model(ids[:, begin:end], attention_mask=mask[:, :end], cache=cache, use_cache=True)
        out.append(found.logits)
        cache, begin = found.cache, end
    return torch.cat(out, 1)[mask.bool()]


class Architectures(unittest.TestCase):
    def check(self, name, settings, rope, windows, scheme, recent=16):
        model = make_model(name, **settings)
        before, expected = model.config._attn_implementation, logits(model)
        with xquant.transformers.use(model, scheme, recent=recent, sinks=0, threads=1) as used:
            found = logits(model)
            layers = used._layers
        self.assertEqual(model.config._attn_implementation, before)
        self.assertEqual([layer.window for layer in layers], windows)
        of = layers[0].rope
        self.assertEqual(of and (of.pairing, of.layout, of.pairs), rope)
        size = expected.abs().max()
        self.assertGreater(size, 0.3)
        self.assertLess((found - expected).abs().max() / size, 0.012)
        self.assertGreater((found - expected).abs().max() / size, 1e-6)
        torch.testing.assert_close(logits(model), expected, rtol=0, atol=0)

    def test_logits_are_those_of_the_model(self):
        for name, (settings, rope, windows) in ARCHITECTURES.items():
            with self.subTest(name):
                self.check(name, settings, rope, windows, "f16")

    def test_keys_that_are_turned_back(self):
        for name in ("Llama", "Qwen3", "Glm", "Cohere", "Gemma2", "Gemma3"):
            with self.subTest(name):
                self.check(name, *ARCHITECTURES[name], "svd_head4:group=32")

    def test_x_in_place_of_keys(self):
        for name in ("Llama", "Qwen3", "Cohere", "Gemma2", "Gemma3"):
            with self.subTest(name):
                self.check(name, *ARCHITECTURES[name], "x4_rot", recent=64)  # all of X in f16
        with self.assertRaisesRegex(xquant.ShapeError, "keys_before_rope"):
            xquant.transformers.use(make_model("Phi3"), "x4_rot")

    def test_statistics_whose_pairs_lie_in_another_way(self):
        model, contexts = make_model(), [tokens(1, 300, seed) for seed in (5, 6)]
        exact, found = logits(model), []
        with tempfile.TemporaryDirectory() as folder:
            paths = [pathlib.Path(folder) / name for name in ("own", "other")]
            xquant.transformers.calibrate(model, contexts, path=paths[0], threads=1)
            with _Listening(model, "f16", None, 1, {}, turn_back=True) as used, torch.no_grad():
                used.layers = [layer.describe("keys_before_rope", "interleaved") for layer in used._layers]
                used.store = xquant.Cache("f16", used.layers)
                used.calibrator = xquant.Calibrator(used.layers)
                for context in contexts:
                    model(context, cache=used.cache())
                used.calibrator.finish().save(str(paths[1]), used.layers)
            for path, target in zip(paths, ("halves", "interleaved")):
                strict = {"recent": 0, "strict": True, "threads": 1}
                with xquant.transformers.use(model, "head4:uniform", calibration=path, **strict) as used:
                    self.assertEqual(used._layers[0].target, target)
                    found.append(logits(model))
            other = make_model(num_key_value_heads=4)
            with self.assertRaisesRegex(xquant.MismatchError, "kv_heads of layer 0 is 2 there and 4 here"):
                xquant.transformers.use(other, "head4:uniform", calibration=paths[1])
        errors = [float((f - exact).norm() / exact.norm()) for f in found]
        self.assertTrue(all(1e-3 < error < 0.3 for error in errors), errors)
        self.assertLess(abs(errors[0] - errors[1]), 0.3 * errors[0])

    def test_other_types(self):
        for dtype, bound in ((torch.bfloat16, 0.12), (torch.float16, 0.015)):
            model = make_model().to(dtype)
            expected = logits(model).float()
            with xquant.transformers.use(model, "f16", threads=1):
                found = logits(model).float()
            self.assertLess((found - expected).abs().max() / expected.abs().max(), bound)

    def test_rope_that_only_the_model_knows(self):
        model = make_model(
            rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}, max_position_embeddings=32
        )
        expected = logits(model)
        with xquant.transformers.use(model, "f16", threads=1):  # keys are stored as they come
            self.assertLess((logits(model) - expected).abs().max() / expected.abs().max(), 0.012)
        with xquant.transformers.use(model, "svd_head4:group=32", threads=1):
            with self.assertRaisesRegex(xquant.ShapeError, "frequencies that change with the length"):
                logits(model)


class Calls(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.model = make_model()

    def use(self, scheme="f16", **settings):
        used = xquant.transformers.use(self.model, scheme, threads=1, **settings)
        self.addCleanup(used.stop)
        return used

    def generate(self, rows=1, **settings):
        ids = tokens(rows, 12)
        mask = torch.ones_like(ids)
        mask[rows - 1, : 4 if rows > 1 else 0] = 0
        return self.model.generate(ids, attention_mask=mask, max_new_tokens=24, do_sample=False, **settings)

    def test_generate(self):
        for settings in (
            {},
            {"rows": 3},
            {"num_beams": 3},
            {"rows": 2, "num_beams": 4, "num_return_sequences": 2},
            {"prompt_lookup_num_tokens": 4},
            {"rows": 2, "num_return_sequences": 2, "num_beams": 2},
        ):
            with self.subTest(str(settings)):
                expected = self.generate(**settings)
                used = self.use()
                found = self.generate(**settings)
                used.stop()
                self.assertEqual(found.tolist(), expected.tolist())

    def test_assistant(self):
        assistant = make_model(num_hidden_layers=1)
        expected = self.generate()
        self.use()
        used = xquant.transformers.use(assistant, "f16", threads=1)
        self.addCleanup(used.stop)
        self.assertEqual(self.generate(assistant_model=assistant).tolist(), expected.tolist())

    def test_crop_and_files(self):
        used = self.use("kv8", recent=8)
        ids, cache = tokens(1, 40), used.cache()
        with torch.no_grad():
            whole = self.model(ids[:, :30], cache=cache).logits[:, -1]
            self.model(ids[:, 30:], cache=cache)
            cache.crop(-11)
            self.assertEqual(cache.get_seq_length(), 29)
            again = self.model(ids[:, 29:30], cache=cache).logits[:, -1]
            self.assertLess((again - whole).abs().max() / whole.abs().max(), 0.03)
            with tempfile.TemporaryDirectory() as folder:
                path = pathlib.Path(folder) / "text.xq"
                cache.save(path)
                loaded = used.load(path)
                self.assertEqual(loaded.get_seq_length(), 30)
                answers = [self.model(ids[:, 30:], cache=c).logits for c in (cache, loaded)]
            torch.testing.assert_close(answers[0], answers[1], rtol=0, atol=0)
        with self.assertRaisesRegex(xquant.ShapeError, r"crop\(3\)"):
            cache.crop(3)

    def test_rows_of_a_cache(self):
        used = self.use()
        ids, cache = tokens(2, 20), used.cache()
        with torch.no_grad():
            self.model(ids, cache=cache)
            cache.batch_repeat_interleave(2)
            cache.reorder_cache(torch.tensor([3, 3, 0, 1]))
            cache.batch_select_indices(torch.tensor([0, 2]))
            found = self.model(ids[[1, 0], :3], cache=cache).logits
            cache.reset()
            self.assertEqual(cache.get_seq_length(), 0)
            expected = self.model(torch.cat([ids[[1, 0]], ids[[1, 0], :3]], 1), cache=cache).logits[:, -3:]
        self.assertLess((found - expected).abs().max() / expected.abs().max(), 0.012)
        self.assertTrue(cache.is_croppable)

    def test_memory_goes_with_its_cache(self):
        used = self.use()
        before = used.store.bytes()["stored"]
        cache = used.cache()
        with torch.no_grad():
            self.model(tokens(2, 300), cache=cache)
        most = used.store.bytes()["stored"]
        self.assertGreater(most, 10 * before)
        del cache
        self.assertLess(used.store.bytes()["stored"], most / 4)

    def test_a_pass_that_fails_changes_nothing(self):
        used = self.use()
        ids, cache = tokens(1, 20), used.cache()
        layer = self.model.model.layers[2]
        with torch.no_grad():
            self.model(ids[:, :10], cache=cache)
            hook = layer.register_forward_pre_hook(lambda *_: 1 / 0)
            with self.assertRaises(ZeroDivisionError):
                self.model(ids[:, 10:], cache=cache)
            hook.remove()
            self.assertEqual((cache.get_seq_length(), len(cache.batch.sequences[0])), (10, 10))
            found = self.model(ids[:, 10:], cache=cache).logits
            used.stop()
            expected = self.model(ids).logits[:, 10:]
        self.assertLess((found - expected).abs().max() / expected.abs().max(), 0.012)

    def test_what_is_refused(self):
        ids = tokens(1, 8)
        used = self.use()
        with self.assertRaisesRegex(xquant.StateError, "in use already"):
            xquant.transformers.use(self.model, "kv4")
        with self.assertRaisesRegex(xquant.ShapeError, "no gradients"):
            self.model(ids)
        with torch.no_grad():
            for changed, sentence in (
                ({"use_cache": False}, "use_cache is False"),
                ({"output_attentions": True}, "keeps no probabilities"),
                ({"cache": transformers.StaticCache(self.model.config, 64)}, "the cache is a StaticCache"),
                ({"attention_mask": torch.ones(1, 1, 8, 8)}, r"a mask \[1, 1, 8, 8\]"),
                ({"position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])}, "positions of row 0"),
            ):
                with self.subTest(sentence), self.assertRaisesRegex(xquant.ShapeError, sentence):
                    self.model(ids, **changed)
            cache = used.cache()
            used.stop()
            with self.assertRaisesRegex(xquant.StateError, "models that xquant.transformers.use was called for"):
                self.model.set_attn_implementation("xquant")
                self.model(ids)
            self.model.set_attn_implementation("sdpa")
            with xquant.transformers.use(self.model, "kv4", threads=1), self.assertRaisesRegex(
                xquant.ShapeError, "belongs to"
            ):
                self.model(ids, cache=cache)

    def test_models_that_are_refused(self):
        with self.assertRaisesRegex(xquant.ShapeError, "takes no attention function"):
            xquant.transformers.use(make_model("Bloom"), "kv4")
        with self.assertRaisesRegex(xquant.ShapeError, "torch.float64"):
            xquant.transformers.use(make_model().double(), "kv4")
        with self.assertRaisesRegex(xquant.ShapeError, "on meta"):
            xquant.transformers.use(make_model().to("meta"), "kv4")
        with self.assertRaisesRegex(xquant.ShapeError, "chunked_attention"):
            xquant.transformers.use(make_model(layer_types=3 * ["chunked_attention"]), "kv4")
        with self.assertRaisesRegex(xquant.ShapeError, "a Linear; expected a model of transformers"):
            xquant.transformers.use(torch.nn.Linear(2, 2), "kv4")
        model = make_model()
        with self.assertRaisesRegex(xquant.ShapeError, "unknown scheme 'kv44'"):
            xquant.transformers.use(model, "kv44")
        self.assertEqual(model.config._attn_implementation, "sdpa")
        self.assertFalse(model._forward_pre_hooks)

    def test_windows_cannot_be_cropped(self):
        model = make_model("Mistral", sliding_window=8)
        with xquant.transformers.use(model, "f16", threads=1) as used:
            self.assertFalse(used.cache().is_croppable)
            with self.assertRaisesRegex(ValueError, "cropped"):
                model.generate(tokens(1, 12), max_new_tokens=8, prompt_lookup_num_tokens=3)


if __name__ == "__main__":
    unittest.main()
