"""A model of transformers, read from a GGUF file, answers with its keys and values in a cache of xquant's.

pip install "bindings/python[transformers]" gguf
python examples/python/transformers_generate.py --model "$(tools/get-model)" --scheme kv4
"""

import argparse
import pathlib

import transformers

import xquant.transformers

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", type=pathlib.Path, required=True, help="a GGUF file")
parser.add_argument("--scheme", default="kv4", help="xquant.schemes() lists them")
parser.add_argument("--calibration", help="a file, for head4 and its kind")
parser.add_argument("--tokens", type=int, default=40, help="of each answer")
parser.add_argument("prompts", nargs="*", default=["The capital of France is", "A cache of keys and values is"])
arguments = parser.parse_args()

place = {"pretrained_model_name_or_path": str(arguments.model.parent), "gguf_file": arguments.model.name}
tokenizer = transformers.AutoTokenizer.from_pretrained(**place, padding_side="left")
model = transformers.AutoModelForCausalLM.from_pretrained(**place).eval()
inputs = tokenizer(arguments.prompts, return_tensors="pt", padding=True)

with xquant.transformers.use(model, arguments.scheme, calibration=arguments.calibration) as used:
    cache = used.cache()  # without one, generate makes it
    answers = model.generate(**inputs, cache=cache, max_new_tokens=arguments.tokens, do_sample=False)
    print(*tokenizer.batch_decode(answers, skip_special_tokens=True), sep="\n---\n")
    print(f"\n{used}: {used.store.bytes()['stored']:,d} bytes for {cache.batch.real.sum()} tokens")
