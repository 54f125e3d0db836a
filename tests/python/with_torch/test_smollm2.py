"""xquant.transformers on a real model, SmolLM2 from a GGUF file: needs PyTorch, transformers and gguf.

XQUANT_MODEL=$(tools/get-model) python -m unittest discover -s tests/python/with_torch -v
"""

import os
import pathlib
import tempfile
import unittest

import torch
import transformers

import xquant
import xquant.transformers

MODEL = os.environ.get("XQUANT_MODEL")
TEXT = pathlib.Path(__file__).parents[3] / "examples/llm/text/essays.txt"
PROMPTS = ["The capital of France is", "Once upon a time, in a small village by the sea, there lived", "2 + 2 ="]


@unittest.skipUnless(MODEL, "SKIPPED: XQUANT_MODEL names no GGUF file of SmolLM2")
class SmolLM2(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        path = pathlib.Path(MODEL)
        place = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
        cls.tokenizer = transformers.AutoTokenizer.from_pretrained(**place, padding_side="left")
        cls.model = transformers.AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32).eval()
        cls.text = cls.tokenizer(TEXT.read_text(), return_tensors="pt").input_ids[0]

    def generate(self, prompts, **settings):
        inputs = self.tokenizer(prompts, return_tensors="pt", padding=True)
        out = self.model.generate(**inputs, max_new_tokens=10, do_sample=False, pad_token_id=2, **settings)
        return out.tolist()

    def test_tokens_are_those_of_the_exact_cache(self):
        ways = [
            (PROMPTS[:1], {}),
            (PROMPTS, {}),
            (PROMPTS[1:2], {"num_beams": 3}),
            (PROMPTS[1:2], {"prompt_lookup_num_tokens": 3}),
        ]
        expected = [self.generate(prompts, **settings) for prompts, settings in ways]
        with xquant.transformers.use(self.model, "f16", recent=4):
            self.assertEqual([self.generate(prompts, **settings) for prompts, settings in ways], expected)
        self.assertIn("Paris", self.tokenizer.decode(expected[0][0]))

    def test_codes_keep_the_next_turn(self):
        ids = self.text[None, :200]
        with xquant.transformers.use(self.model, "kv8", recent=0, strict=True) as used, torch.inference_mode():
            cache = used.cache()
            self.model(ids[:, :190], cache=cache, logits_to_keep=1)
            with tempfile.TemporaryDirectory() as folder:
                cache.save(pathlib.Path(folder) / "text.xq")
                restored = used.load(pathlib.Path(folder) / "text.xq")
                self.model(ids[:, 190:], cache=cache)
                cache.crop(-10)
                found = [self.model(ids[:, 190:], cache=c).logits for c in (restored, cache)]
        with torch.inference_mode():
            expected = self.model(ids).logits[:, 190:]
        self.assertLess(divergence(expected, found[0]), 0.003)
        self.assertLess(divergence(expected, found[1]), 0.003)

    def test_divergence_grows_as_bits_shrink_and_calibration_helps(self):
        context = self.text[3000:3512]
        with torch.inference_mode():
            exact = self.model(context[None]).logits
        learnt = xquant.transformers.calibrate(self.model, self.text[:1200].split(600))
        self.assertEqual((learnt.tokens, learnt.contexts), (2 * 596, 2))
        found = {}
        for scheme in ("f16", "kv8", "kv4", "svd_head4", "head4:uniform"):
            calibration = learnt if scheme == "head4:uniform" else None
            strict = {"strict": True, "recent": 0}
            with xquant.transformers.use(self.model, scheme, calibration=calibration, **strict), torch.inference_mode():
                found[scheme] = divergence(exact, self.model(context[None]).logits)
        self.assertLess(found["f16"], 1e-5)
        self.assertLess(found["kv8"], 1e-3)
        self.assertTrue(0.005 < found["kv4"] < 0.1, found)
        self.assertTrue(0.002 < found["svd_head4"] < 0.5 * found["kv4"], found)
        self.assertTrue(0.001 < found["head4:uniform"] < 0.95 * found["svd_head4"], found)


def divergence(exact, logits):
    """Mean Kullback-Leibler divergence of predictions [1, n, vocabulary]."""
    p, q = exact.log_softmax(-1), logits.log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


if __name__ == "__main__":
    unittest.main()
