#!/usr/bin/env python3
"""tools/llama_cpp_prove.py: measures llama.cpp with its own caches and with xquant's. tools/llama.cpp --prove calls it.

    llama_cpp_prove.py --engine BIN --adapter DIR --model FILE --text FILE --out DIR [--only PHASE,...] [...]

Phases, each of which writes one JSON file into DIR and is not run again while that is there; contexts of the divergence and rounds of the
speed have a file each, so that a run which is stopped goes on:

    architectures  the models that llama.cpp's test-llama-archs writes, one for each architecture: logits with xquant's f16 cache
                   and with llama.cpp's own, against llama.cpp's f32 cache (xquant-llama-compare)
    divergence     llama-perplexity --kl-divergence against llama.cpp's f32 cache, contexts of --contexts tokens, and of
                   --second-contexts tokens on --second-model
    speed          llama-bench, for --depths and --threads, all caches by turns, --rounds times; with the largest memory of each run
    programs       llama.cpp's own tests and examples over xquant's caches: whether they pass
    server         a session of llama-server with eight slots: shared and cached prompts, requests that are given up, context shifts, slots
                   in files, copied slots; over llama.cpp's f16 cache, again over that, over its f32 cache, and over xquant's
    faults         xquant-llama-faults: bad rows, no memory, no budget, a save that is killed

Runs of one phase follow each other and never overlap, but for those of the server, whose times do not count; times need an otherwise idle
machine.
"""

import argparse
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import llama_cpp_server

SCHEMES = ["f16", "kv8", "kv4", "kivi4", "gqa4"]
# llama.cpp's own: a name, and the arguments of llama-bench and of the other programs.
OWN = {
    "f16": (["-ctk", "f16", "-ctv", "f16"], False),
    "f16 flash": (["-ctk", "f16", "-ctv", "f16"], True),
    "q8_0": (["-ctk", "q8_0", "-ctv", "q8_0"], True),
    "q4_0": (["-ctk", "q4_0", "-ctv", "q4_0"], True),
    "q8_0 K, q4_0 V": (["-ctk", "q8_0", "-ctv", "q4_0"], True),
    "f16 K, q4_0 V": (["-ctk", "f16", "-ctv", "q4_0"], True),
}


def say(text):
    print(text, file=sys.stderr, flush=True)


class Engine:
    def __init__(self, binaries, adapter, calibration=None):
        self.binaries, self.adapter, self.calibration = Path(binaries), Path(adapter), calibration

    def environment(self, scheme=None, settings=None):
        """`scheme`: a program runs over xquant's cache, else over llama.cpp's own."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("XQUANT_")}
        environment["LD_LIBRARY_PATH"] = str(self.binaries)
        environment["LD_PRELOAD"] = str(self.adapter / "libxquant-llama.so")
        if scheme is not None:
            environment["XQUANT_CACHE"] = scheme
            if self.calibration:
                environment["XQUANT_CALIBRATION"] = self.calibration
            environment.update(settings or {})
        return environment

    def run(self, program, arguments, scheme=None, settings=None, folder=None, own=True, timeout=7200):
        """(exit status, output, seconds, largest resident KiB) of a program of llama.cpp; `scheme`: over xquant's cache."""
        environment = self.environment(scheme, settings)
        path = (self.binaries if own else self.adapter) / program
        with tempfile.TemporaryFile() as output:
            start = time.monotonic()
            process = subprocess.Popen(
                [str(path), *map(str, arguments)], stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=folder
            )
            deadline = start + timeout
            while True:
                pid, status, usage = os.wait4(process.pid, os.WNOHANG)
                if pid != 0:
                    break
                if time.monotonic() > deadline:
                    process.kill()
                time.sleep(0.05)
            process.returncode = os.waitstatus_to_exitcode(status)
            seconds = time.monotonic() - start
            output.seek(0)
            text = output.read().decode(errors="replace")
        return process.returncode, text, seconds, usage.ru_maxrss


def must(result, what):
    status, text, *_ = result
    if status != 0:
        tail = "\n".join(text.splitlines()[-15:])
        sys.exit(f"error: {what} ended with {status}:\n{tail}")
    return result


def flash(on):
    return ["-fa", "on" if on else "off"]


def own_bytes(text):
    """Bytes a token of llama.cpp's cache, as it logs them."""
    total = 0
    for size, cells, streams in re.findall(r"size =\s*([\d.]+) MiB \(\s*(\d+) cells,\s*\d+ layers,\s*\d+/(\d+) seqs", text):
        total += float(size) * 2**20 / int(cells) / int(streams)
    return total or None


def our_bytes(text):
    found = re.search(r"xquant: the cache is .*?; (\d+) bytes a token, (\d+) of prepared weights", text)
    if not found:
        sys.exit(f"error: the run was not over xquant's cache:\n{text[-2000:]}")
    return int(found[1]), int(found[2])


# Phases --------------------------------------------------------------------------------------------------------------------------


def architectures(engine, options):
    models = options.out / "models"
    if not models.is_dir() or not any(models.glob("*.gguf")):
        models.mkdir(parents=True, exist_ok=True)
        # A deviation of 0.5 makes attention uneven enough for a factor of 1.01 in its scale to be seen.
        must(engine.run("test-llama-archs", ["-o", models, "-d", options.deviation]), "test-llama-archs")
    files = sorted(models.glob("*.gguf"))
    say(f"architectures: {len(files)} models")
    result = {}
    for scheme, arguments in {"f16": ["--bound", "4"], "f16, tokens moved too": ["--bound", "4", "--shift", "1"]}.items():
        status, text, *_ = engine.run("xquant-llama-compare", [*arguments, scheme.split(",")[0], *files], own=False)
        rows = []
        for line in text.splitlines():
            found = re.match(r"(\S+)\.gguf\s+(good|WRONG|refused|no rows|not run)\s+(.*)", line)
            if found:
                rows.append({"model": found[1], "verdict": found[2], "about": found[3]})
        if len(rows) < len(files):
            say(f"architectures, {scheme}: {len(rows)} of {len(files)} answered; the last lines:\n{text[-800:]}")
        result[scheme] = {"status": status, "rows": rows, "models": len(files)}
        say(f"architectures, {scheme}: {sum(r['verdict'] == 'good' for r in rows)} of {len(files)} good")
    return result


def divergence_of(text):
    def number(pattern):
        found = re.search(pattern, text)
        return float(found[1]) if found else None

    return {
        "perplexity": number(r"Mean PPL\(Q\)\s*:\s*([\d.]+)"),
        "kld": number(r"Mean\s+KLD:\s*([-\d.]+)"),
        "kld_999": number(r"99\.9%\s+KLD:\s*([-\d.]+)"),
        "top1": number(r"Same top p:\s*([\d.]+)"),
    }


def divergence(engine, options):
    result = []
    strict = {"XQUANT_STRICT": "1", "XQUANT_RECENT": "0"}
    runs = [(options.model, *size) for size in options.contexts]
    runs += [(options.second_model, *size) for size in options.second_contexts if options.second_model]
    caches = [(f"llama.cpp {name}", None, {}, [*types, *flash(on)]) for name, (types, on) in OWN.items()]
    caches += [(f"{s}, strict", s, strict, []) for s in options.schemes]
    caches += [(f"{s}, newest 128 in f16", s, {}, []) for s in ["gqa4", *(s for s in ("head4", "joint4") if s in options.schemes)]]
    for model, context, chunks in runs:
        # Contexts one after the other: a run that is stopped goes on behind the last one that is whole.
        part = options.out / f"divergence-{Path(model).stem}-{context}x{chunks}.json"
        if part.exists():
            result += json.loads(part.read_text())
            continue
        rows = []
        with tempfile.TemporaryDirectory(dir=options.out) as folder:
            base = Path(folder) / "logits"
            common = ["-m", model, "-f", options.text, "-c", context, "--chunks", chunks, "-t", max(options.threads)]
            # The log line about the cache's size is of level 3.
            common += ["-lv", "4"]
            say(f"divergence: {Path(model).name}, context {context}, {chunks} chunks: llama.cpp's f32 cache")
            must(
                engine.run("llama-perplexity", [*common, "-ctk", "f32", "-ctv", "f32", *flash(False), "--save-all-logits", base]),
                "llama-perplexity",
            )
            compare = [*common, "--kl-divergence", "--kl-divergence-base", base]
            for name, scheme, settings, arguments in caches:
                if context >= options.long and name.split(",")[0] not in options.long_caches:
                    continue
                out = must(engine.run("llama-perplexity", [*compare, *arguments], scheme, settings), f"llama-perplexity, {name}")
                row = {"model": Path(model).name, "context": context, "chunks": chunks, "cache": name, "own": scheme is None}
                row |= divergence_of(out[1])
                row["bytes"], row["weights"] = our_bytes(out[1]) if scheme else (own_bytes(out[1]), 0)
                if row["kld"] is None:
                    sys.exit(f"error: llama-perplexity, {name}: no divergence in its output:\n{out[1][-1500:]}")
                rows.append(row)
                say(f"  {name:24} {row['bytes'] or 0:8.0f} bytes a token, mean KLD {row['kld']:.5f}, {out[2]:.0f} s")
        part.write_text(json.dumps(rows, indent=1))
        result += rows
    return result


def speed(engine, options):
    result = []
    caches = [(f"llama.cpp {name}", None, [*types, "-fa", "1" if on else "0"]) for name, (types, on) in OWN.items() if name in options.own]
    caches += [(name, name, []) for name in options.schemes]
    for round_ in range(options.rounds):
        part = options.out / f"speed-round{round_ + 1}.json"
        if part.exists():
            result += json.loads(part.read_text())
            continue
        rows = []
        for threads in options.threads:
            for depth in options.depths:
                for name, scheme, arguments in caches:
                    if depth >= options.deep and (name not in options.deep_caches or threads != min(options.threads)):
                        continue
                    if round_ > 0 and name in options.once:
                        continue
                    run = ["-m", options.model, "-t", threads, "-d", depth, "-r", options.repetitions, "-n", options.tokens]
                    run += ["-p", 0 if depth >= options.deep else 512, "-o", "json", *arguments]
                    status, text, seconds, kib = must(engine.run("llama-bench", run, scheme), f"llama-bench, {name}")
                    tests = json.loads(text[text.index("[\n") : text.rindex("]") + 1])
                    row = {"round": round_, "threads": threads, "depth": depth, "cache": name, "own": scheme is None, "rss": kib}
                    for test in tests:
                        row["decode" if test["n_gen"] > 0 else "prompt"] = test["avg_ts"]
                    rows.append(row)
                    say(
                        f"speed: round {round_ + 1} of {options.rounds}, {threads} threads, depth {depth:5}, {name:20}"
                        f" {row['decode']:7.2f} tokens/s, prompt {row.get('prompt', 0):7.1f}, {kib / 1024:.0f} MiB, {seconds:.0f} s"
                    )
        part.write_text(json.dumps(rows, indent=1))
        result += rows
    return result


def programs(engine, options):
    """Programs of llama.cpp's own, over xquant's caches: exit status 0 is a pass."""
    model = ["-m", options.model]
    prompt = ["-p", "The history of mathematics begins with"]
    runs = {
        "test-save-load-state": [*model, "-n", 16],
        "test-state-restore-fragmented": [*model],
        "test-thread-safety": [*model, *prompt, "-n", 16, "-np", 2, "-c", 512, "-t", 2],
        "llama-parallel": [*model, "-np", 4, "-ns", 8, "-n", 32, "-c", 4096],
        "llama-batched-bench": [*model, "-c", 2048, "-npp", 128, "-ntg", 32, "-npl", "1,2,4"],
        "llama-lookahead": [*model, *prompt, "-n", 32, "-c", 2048, "-np", 16],
        "llama-completion": [*model, *prompt, "-n", 64, "-no-cnv", "--temp", 0],
    }
    result = []
    for scheme in [None, *options.schemes]:
        for program, arguments in runs.items():
            with tempfile.TemporaryDirectory() as folder:
                # The adapter's line is of level 3.
                status, text, seconds, _ = engine.run(program, [*arguments, "-lv", "4"], scheme, folder=folder, timeout=600)
            served = "xquant: the cache is" in text or scheme is None
            result.append({"program": program, "cache": scheme or "llama.cpp f16", "status": status, "seconds": seconds, "served": served})
            say(f"programs: {scheme or 'llama.cpp':10} {program:32} {'passed' if status == 0 else f'ended with {status}'} ({seconds:.0f} s)")
            if status != 0:
                (options.out / f"{program}-{scheme}.log").write_text(text)
    return result


def faults(engine, options):
    result = []
    for scheme in options.schemes:
        status, text, *_ = engine.run("xquant-llama-faults", [options.model], scheme, own=False, timeout=900)
        lines = [line for line in text.splitlines() if line.startswith("fault: ")]
        result.append({"cache": scheme, "status": status, "lines": lines})
        say(f"faults: {scheme}: {len(lines)} faults, {'all well' if status == 0 else f'ended with {status}'}")
        if status != 0:
            say(text[-1500:])
    return result


def server(engine, options):
    """Distances of each session's answers from those of a free one over llama.cpp's f16 cache. No times are measured: the modes run at
    once, with a thread each."""
    with ThreadPoolExecutor() as pool:
        return sum(pool.map(lambda mode: server_sessions(engine, options, mode), llama_cpp_server.MODES), [])


def server_sessions(engine, options, mode):
    types = [*OWN["f16"][0], *flash(False)]
    runs = [("llama.cpp f16", None, types), ("llama.cpp f16, again", None, types)]
    runs += [("llama.cpp f32", None, ["-ctk", "f32", "-ctv", "f32", *flash(False)])]
    runs += [(scheme, scheme, []) for scheme in options.server_schemes]
    result = []
    script = None
    for name, scheme, own in runs:
        row = {"mode": mode, "cache": name, "own": scheme is None, "parts": {}, "mistakes": {}, "wrong": [], "status": None}
        start = time.monotonic()
        session = playing = None
        with tempfile.TemporaryDirectory(dir=options.out) as folder:
            try:
                playing = llama_cpp_server.Server(engine, options.model, mode, f"{folder}/", scheme, own)
                session = llama_cpp_server.play(playing, script, mistakes=script is None and mode == "slots")
                row["wrong"] = session.wrong
            except (OSError, ValueError, KeyError, http.client.HTTPException) as error:
                row["wrong"] = [f"the session broke off: {error!r}"]
            finally:
                row["status"] = playing.stop(signal.SIGTERM if mode == "slots" else signal.SIGINT) if playing else None
        log = playing.log if playing else ""
        if row["status"] != 0:
            row["wrong"].append(f"llama-server ended with {row['status']}")
        if scheme is not None and "xquant: the cache is" not in log:
            row["wrong"].append("it ran without xquant's cache")
        if row["wrong"]:
            (options.out / f"llama-server-{mode}-{name}.log").write_text(log)
        result.append(row)
        if session is None:
            if script is None:
                break
            continue
        script = script or session.parts
        for part, answers in session.parts.items():
            row["parts"][part] = llama_cpp_server.compare(script[part], answers)
        for mistake, (part, answers) in session.mistakes.items():
            row["mistakes"][mistake] = {"part": part, **llama_cpp_server.compare(script[part], answers)}
        mean = server_total(row["parts"])["mean"]
        say(f"server: {mode:8} {name:22} distance {mean:.4f}, {len(row['wrong'])} faults, {time.monotonic() - start:.0f} s")
    return result


def server_total(parts):
    tokens = sum(part["tokens"] for part in parts.values())
    return {"tokens": tokens, "mean": sum(part["mean"] * part["tokens"] for part in parts.values()) / tokens}


def server_bound(own):
    """How far xquant's f16 cache may be from llama.cpp's, where llama.cpp's f32 cache is so far: both differ from it by rounding alone,
    and a mean over few tokens varies more. Each mistake that a session makes on purpose has to be further off than that, and schemes of
    fewer bits nearer than the least of them."""
    return own["mean"] * (1 + 10 / own["tokens"] ** 0.5)


def server_problems(result):
    rounding = {row["mode"]: row["parts"] for row in result if row["cache"] == "llama.cpp f32"}
    least = min((mistake["mean"] for row in result for mistake in row["mistakes"].values()), default=float("inf"))
    for row in result:
        where = f"llama-server, {row['mode']}, {row['cache']}"
        yield from (f"{where}: {line}" for line in row["wrong"])
        own = rounding.get(row["mode"])
        if not own:
            continue
        for name, mistake in row["mistakes"].items():
            if mistake["mean"] <= server_bound(own[mistake["part"]]):
                yield f"{where}: {name} would not be noticed: distance {mistake['mean']:.4f}"
        if row["cache"] == "f16" and row["parts"]:
            pairs = {part: (row["parts"][part], own[part]) for part in own} | {"all parts": (server_total(row["parts"]), server_total(own))}
            for part, (ours, theirs) in pairs.items():
                if ours["mean"] > server_bound(theirs):
                    yield f"{where}, {part}: distance {ours['mean']:.4f}, llama.cpp's f32 cache {theirs['mean']:.4f}"
        elif not row["own"]:
            for part, ours in row["parts"].items():
                if ours["mean"] >= least:
                    yield f"{where}, {part}: distance {ours['mean']:.4f}, as if rows were wrong ({least:.4f})"


def problems(phase, result):
    """What is not as it should be, a line each. Divergence and speed are figures, and no verdicts."""
    if phase == "architectures":
        run = result["f16"]
        good = sum(row["verdict"] == "good" for row in run["rows"])
        yield from (f"architecture {row['model']}: {row['about']}" for row in run["rows"] if row["verdict"] == "WRONG")
        if good < 100:
            yield f"architectures: {good} of {run['models']} are good; expected 100"
    if phase == "programs":
        passes = {row["program"]: row["status"] == 0 for row in result if row["cache"] == "llama.cpp f16"}
        for row in result:
            if row["status"] != 0 and passes[row["program"]]:
                yield f"{row['program']} over {row['cache']} ended with {row['status']}, and passes over llama.cpp's cache"
            if not row["served"]:
                yield f"{row['program']} over {row['cache']} ran without xquant's cache"
    if phase == "server":
        yield from server_problems(result)
    if phase == "faults":
        yield from (f"faults over {row['cache']}: {row['lines'][-1:]}" for row in result if row["status"] != 0)


PHASES = {
    "architectures": architectures,
    "divergence": divergence,
    "speed": speed,
    "programs": programs,
    "server": server,
    "faults": faults,
}


def numbers(text):
    return [int(part) for part in text.split(",")]


def contexts(text):
    return [tuple(int(n) for n in part.split("x")) for part in text.split(",")]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", required=True, help="folder of llama.cpp's programs")
    parser.add_argument("--adapter", required=True, help="folder of libxquant-llama.so")
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--only", default=",".join(PHASES), help="phases, default all: %(default)s")
    parser.add_argument("--schemes", default=",".join(SCHEMES), help="default %(default)s")
    parser.add_argument("--server-schemes", help="of the phase server, default --schemes")
    parser.add_argument("--contexts", default="1024x4,8192x1", type=contexts, help="CONTEXTxCHUNKS,..., default 1024x4,8192x1")
    parser.add_argument("--long", default=8192, type=int, help="divergence: from this context on --long-caches alone, since some are slow")
    names = "llama.cpp f16,llama.cpp q8_0,llama.cpp q4_0,kv8,kv4,gqa4"
    parser.add_argument("--long-caches", default=names, type=lambda text: text.split(","), help="default %(default)s")
    parser.add_argument("--calibration", help="what `xquant-llm calibrate` saved of --model, for head4 and its kind; without --second-model")
    parser.add_argument("--second-model", help="for the divergence, too")
    parser.add_argument("--second-contexts", default="1024x2,8192x1", type=contexts, help="as --contexts, of --second-model; default 1024x2,8192x1")
    parser.add_argument("--depths", default="0,4096,16384", type=numbers)
    parser.add_argument("--deep", default=16384, type=int, help="from this depth on decoding alone, one thread count, --deep-caches")
    deep = "llama.cpp f16,llama.cpp q8_0,llama.cpp q4_0,kv8,kv4,gqa4"
    parser.add_argument("--deep-caches", default=deep, type=lambda text: text.split(","), help="default %(default)s")
    own = "f16,f16 flash,q8_0,q4_0"
    parser.add_argument("--own", default=own, type=lambda text: text.split(","), help="speed: llama.cpp's own caches, default %(default)s")
    parser.add_argument("--once", default="", type=lambda text: text.split(","), help="speed: caches of the first round alone, since some are slow")
    parser.add_argument("--threads", default="1,2", type=numbers)
    parser.add_argument("--rounds", default=3, type=int)
    parser.add_argument("--repetitions", default=2, type=int, help="of llama-bench within a run")
    parser.add_argument("--tokens", default=32, type=int, help="that llama-bench decodes")
    parser.add_argument("--deviation", default="0.5", help="of the weights of test-llama-archs' models")
    options = parser.parse_args()
    options.server_schemes = (options.server_schemes or options.schemes).split(",")
    options.schemes = options.schemes.split(",")
    options.out.mkdir(parents=True, exist_ok=True)
    engine = Engine(options.engine, options.adapter, options.calibration)
    for phase in options.only.split(","):
        if phase not in PHASES:
            parser.error(f"unknown phase '{phase}'; there are {', '.join(PHASES)}")
    wrong = []
    for phase in options.only.split(","):
        path = options.out / f"{phase}.json"
        if path.exists():
            say(f"{phase}: is there ({path})")
            wrong += problems(phase, json.loads(path.read_text())["result"])
            continue
        start = time.monotonic()
        result = PHASES[phase](engine, options)
        part = path.with_suffix(".part")
        part.write_text(json.dumps({"model": Path(options.model).name, "text": Path(options.text).name, "result": result}, indent=1))
        part.rename(path)
        say(f"{phase}: {time.monotonic() - start:.0f} s")
        wrong += problems(phase, result)
    for line in wrong:
        say(f"WRONG: {line}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
