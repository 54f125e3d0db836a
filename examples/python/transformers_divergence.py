"""What caches of xquant's cost a model of transformers, beside transformers' own quantized caches: a table in Markdown.

    pip install "xquant[transformers]" gguf tqdm optimum-quanto hqq
    python examples/python/transformers_divergence.py --model "$(tools/get-model)" --caches kv4,svd_head4,quanto4,hqq4

Each cache reads the same tokens in steps; its predictions are compared with those of the model's own attention over a
whole context at once: mean Kullback-Leibler divergence, and how often the most likely token is the same. Bits are
those of a token's K and V in a layer, scales and zeros included (of quanto and HQQ in 16 bits each), without what is
kept exact.
Time is that of the steps, all of the model's work in it.
"""

import argparse
import pathlib
import tempfile
import time

import numpy as np
import torch
import transformers
from tqdm import tqdm

import xquant.transformers

TEXT = pathlib.Path(__file__).parents[1] / "llm/text/essays.txt"
GROUP = 64  # of transformers' caches


def load(path, dtype):
    """Model and tokenizer of a GGUF file, or of a folder or name as transformers has it."""
    path = pathlib.Path(path).expanduser()
    settings = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
    place = str(path.parent if settings else path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(place, **settings)
    return transformers.AutoModelForCausalLM.from_pretrained(place, dtype=dtype, **settings).eval(), tokenizer


def logits_of(model, ids, cache, step):
    """The predictions behind each of ids [n], fed in steps: parts [step, vocabulary], and the seconds of each."""
    for begin in range(0, len(ids), step):
        started = time.perf_counter()
        found = model(ids[None, begin : begin + step], cache=cache, use_cache=True)
        yield begin, found.logits[0].float(), time.perf_counter() - started
        cache = found.cache


def own_cache(name, model, residual):
    """transformers' cache of a name such as quanto4 or hqq2, and its bits of a token and layer."""
    backend, bits = name[:-1], int(name[-1])
    axis = {"quanto": 0, "hqq": 1}[backend]  # scales of a token's head
    make = lambda: transformers.QuantizedCache(
        backend, model.config, nbits=bits, axis_key=axis, axis_value=axis, q_group_size=GROUP, residual_length=residual
    )
    config = model.config.get_text_config()
    return make, 2 * config.num_key_value_heads * config.head_dim * (bits + 2 * 16 / GROUP)


class Divergence:
    """Divergences, and what else is to be said of a cache."""

    def __init__(self):
        self.kld, self.same, self.loss, self.exact_loss, self.seconds = [], [], [], [], 0.0

    def add(self, ids, begin, exact, logits):
        """exact: log probabilities [n, vocabulary] of a context; logits [step, vocabulary] from `begin` on."""
        n = min(len(logits), len(ids) - 1 - begin)  # the last token has none behind it
        p, q = exact[begin : begin + n], logits[:n].log_softmax(-1)
        self.kld += (p.exp() * (p - q)).sum(-1).tolist()
        self.same += (p.argmax(-1) == q.argmax(-1)).tolist()
        behind = ids[begin + 1 : begin + 1 + n, None]
        self.loss += (-q.gather(-1, behind)).tolist()
        self.exact_loss += (-p.gather(-1, behind)).tolist()

    def row(self, name, bits):
        kld, worse = np.asarray(self.kld), np.exp(np.mean(self.loss) - np.mean(self.exact_loss)) - 1
        return (
            f"| {name} | {bits:.0f} | {kld.mean():.5f} | {kld.std() / np.sqrt(len(kld)):.5f} | "
            f"{100 * np.mean(self.same):.1f} | {100 * worse:+.2f} | {1e3 * self.seconds / (len(kld)):.1f} |"
        )


def measure(model, name, contexts, exact, arguments, progress):
    """The line of a cache's name."""
    found, step = Divergence(), arguments.step or arguments.context
    own = name.startswith(("quanto", "hqq"))
    if own:
        make, bits = own_cache(name, model, arguments.residual)
        used = None
    else:
        settings = {"recent": arguments.recent, "sinks": arguments.sinks, "strict": arguments.strict}
        used = xquant.transformers.use(
            model, name, calibration=arguments.calibration, threads=arguments.threads, **settings
        )
        make, bits = used.cache, used.store.bits_per_token_layer(1024)
    try:
        for ids, path in zip(contexts, exact):
            log_probabilities = torch.load(path)
            for begin, logits, seconds in logits_of(model, ids, make(), step):
                found.add(ids, begin, log_probabilities, logits)
                found.seconds += seconds
                progress.update(len(logits))
    finally:
        if used:
            used.stop()
    return found.row(name, bits)


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a GGUF file, or a folder or name of transformers")
    parser.add_argument("--text", default=TEXT, help="a file; the essays of examples/llm/text, if not given")
    parser.add_argument("--offset", type=int, default=0, help="tokens of the text that are left out")
    parser.add_argument("--context", type=int, default=1024, help="tokens of a context, each of which begins anew")
    parser.add_argument("--chunks", type=int, default=2, help="contexts")
    parser.add_argument("--step", type=int, default=0, help="tokens fed at once; 0: a whole context")
    parser.add_argument(
        "--caches", default="kv4,svd_head4", help="schemes of xquant's; quanto2, quanto4, hqq1, hqq2, hqq4, hqq8"
    )
    parser.add_argument("--calibration", help="a file of xquant-llm calibrate, for head4 and its kind")
    parser.add_argument("--recent", type=int, default=128, help="newest tokens that xquant keeps in f16")
    parser.add_argument("--sinks", type=int, default=4, help="first tokens that xquant keeps in f16")
    parser.add_argument("--strict", action="store_true", help="queries meet the codes of their own step, too")
    parser.add_argument("--residual", type=int, default=128, help="most tokens that transformers' caches keep exact")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    model, tokenizer = load(arguments.model, getattr(torch, arguments.dtype))
    text = pathlib.Path(arguments.text).read_text()
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids[0]
    contexts = ids[arguments.offset :].split(arguments.context)[: arguments.chunks]
    if len(contexts) < arguments.chunks or len(contexts[-1]) < arguments.context:
        raise SystemExit(
            f"{arguments.text}: {len(ids)} tokens; {arguments.chunks} contexts of {arguments.context} need more"
        )
    names = arguments.caches.split(",")
    with tempfile.TemporaryDirectory() as folder, tqdm(total=(1 + len(names)) * sum(map(len, contexts))) as progress:
        exact = []
        for i, context in enumerate(contexts):
            progress.set_description("exact")
            ((_, logits, _),) = logits_of(model, context, None, len(context))
            exact.append(f"{folder}/{i}.pt")
            torch.save(logits.log_softmax(-1), exact[-1])
            progress.update(len(context))
        progress.write("| cache | bits/token/layer | mean KLD | +- | top-1, % | perplexity, % | ms/token |")
        progress.write("|---|---:|---:|---:|---:|---:|---:|")
        failed = False
        for name in names:
            progress.set_description(name)
            try:
                progress.write(measure(model, name, contexts, exact, arguments, progress))
            except (RuntimeError, ValueError, ImportError) as error:
                failed = True
                progress.write(f"FAILED {name}: {error}")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
