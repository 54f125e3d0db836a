"""python -m xquant: what caches would take, before there is one.

python -m xquant plan config.json --context 32768 --sequences 8 --memory 8G
python -m xquant plan --layers 30 --heads 9 --kv-heads 3 --head-dim 64
python -m xquant schemes
python -m xquant level
"""

import argparse
import json
import os
import pathlib
import sys
import textwrap

import xquant

FIELDS = {"layers": "num_hidden_layers", "heads": "num_attention_heads", "kv_heads": "num_key_value_heads"}


def cached_file():
    """Where the machine's figures are kept: $XDG_CACHE_HOME/xquant or ~/.cache/xquant."""
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(home) / "xquant"


def number_of_bytes(text):
    """1500, 64K, 200M or 1.5G, as bytes."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    unit = units.get(text[-1:].upper(), 1)
    try:
        value = float(text[:-1] if unit > 1 else text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no number of bytes; expected one like 1500, 64K or 1.5G")
    if not value * unit >= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is less than a byte")
    return int(value * unit)


def text_of_bytes(value):
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def shape_of(arguments):
    """The model's shape: from its config.json, and what the command line says instead."""
    config = {}
    if arguments.config:
        config = json.loads(pathlib.Path(arguments.config).read_text())
        config = config.get("text_config", config)
    shape = {name: getattr(arguments, name) or config.get(field) for name, field in FIELDS.items()}
    shape["kv_heads"] = shape["kv_heads"] or shape["heads"]
    missing = [name for name, value in shape.items() if not value]
    if missing:
        raise SystemExit(
            f"xquant plan: the model's {', '.join(missing)} not known: name its config.json, or give --layers, --heads"
        )
    shape["head_dim"] = arguments.head_dim or config.get("head_dim")
    if not shape["head_dim"]:
        if "hidden_size" not in config:
            raise SystemExit("xquant plan: the model's head_dim is not known: give --head-dim")
        shape["head_dim"] = config["hidden_size"] // shape["heads"]
    shape["rope_base"] = (
        arguments.rope_base
        or config.get("rope_theta")
        or (config.get("rope_parameters") or {}).get("rope_theta")
        or 10000.0
    )
    kinds = config.get("layer_types") or []
    window = config.get("sliding_window") or 0
    shape["windows"] = [
        window if i < len(kinds) and kinds[i] == "sliding_attention" else 0 for i in range(shape["layers"])
    ]
    return shape


def grouped(pairs):
    """(key, value) pairs as (key, [values]), in the order of the first of each key."""
    out = {}
    for key, value in pairs:
        out.setdefault(key, []).append(value)
    return out.items()


def plan(arguments):
    shape = shape_of(arguments)
    frequencies = xquant.rope_frequencies(shape["head_dim"], shape["rope_base"])
    layers = [
        xquant.Layer(
            shape["heads"],
            shape["kv_heads"],
            shape["head_dim"],
            input="keys_before_rope",
            pairing="halves",
            inverse_frequencies=frequencies,
            window=window,
        )
        for window in shape["windows"]
    ]
    machine = arguments.machine
    if not machine:
        cached_file().mkdir(parents=True, exist_ok=True)
        machine = cached_file() / f"machine-{xquant.level()[0]}-{arguments.threads}.txt"
    calibration = xquant.load_calibration(arguments.calibration, layers) if arguments.calibration else None
    found = xquant.plan(
        layers,
        schemes=arguments.schemes.split(",") if arguments.schemes else [],
        context=arguments.context,
        sequences=arguments.sequences,
        memory=arguments.memory,
        calibration=calibration,
        machine=str(machine),
        threads=arguments.threads,
        sinks=arguments.sinks,
        recent=arguments.recent,
    )
    known = sorted((s for s in found if not s.unavailable), key=lambda s: -s.bytes)
    print(f"  {'scheme':<18}{'cache':>12}{'weights':>12}{'total':>12}{'us/step':>12}{'mean KLD':>11}")
    for s in known:
        remarks = []
        if not s.fits:
            remarks.append("does not fit")
        if s.dominated_by:
            remarks.append(f"dominated by {s.dominated_by}")
        kld = "-" if s.divergence is None else f"{s.divergence:.5f}"
        mark = "*" if s.fits and s.divergence is not None and not s.dominated_by else " "
        print(
            f"{mark} {s.name:<18}{text_of_bytes(s.cache):>12}{text_of_bytes(s.weights):>12}{text_of_bytes(s.bytes):>12}"
            f"{1e6 * s.seconds:>12.1f}{kld:>11}  {'; '.join(remarks)}".rstrip()
        )
    for reason, names in grouped((s.unavailable, s.name) for s in found if s.unavailable):
        print(textwrap.fill(f"not available: {', '.join(names)}: {reason}", 120, initial_indent="  ", subsequent_indent="    "))
    print(
        f"\nus/step: in the cache, for one new token of each of {arguments.sequences} sequence(s) of {arguments.context} "
        f"tokens, {arguments.threads} thread(s)."
    )
    if calibration is not None:
        memory = f" into {text_of_bytes(arguments.memory)}" if arguments.memory else ""
        print(f"* fits{memory}, and no other scheme is as good in bytes, time and divergence and better in one of them.")
    if calibration is None:
        print("mean KLD needs --calibration FILE, which xquant-llm calibrate writes.")
    print("Schemes that store X, or find latents in weights, need the model's weights: xquant-llm plan.")
    if arguments.json:
        fields = (
            "name",
            "unavailable",
            "cache",
            "weights",
            "read",
            "seconds",
            "divergence",
            "unknown",
            "fits",
            "dominated_by",
        )
        rows = [{field: getattr(s, field) for field in fields} for s in found]
        pathlib.Path(arguments.json).write_text(json.dumps({"shape": shape, "schemes": rows}, indent=2) + "\n")


def schemes(_):
    for s in xquant.schemes():
        print(f"{s.name:<18}{s.bits_per_value:6.2f} bits a value   {s.summary}")


def level(_):
    print("level {}, backend {}".format(*xquant.level()))


def parser():
    out = argparse.ArgumentParser("xquant", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = out.add_subparsers(required=True, metavar="plan|schemes|level")
    p = commands.add_parser("plan", help="schemes for a model: bytes, time and divergence")
    p.add_argument("config", nargs="?", help="the model's config.json, as transformers has it")
    for name, about in {
        "layers": "layers",
        "heads": "query heads",
        "kv-heads": "heads of keys and values",
        "head-dim": "channels of a head",
    }.items():
        p.add_argument(f"--{name}", type=int, help=f"{about}, instead of the config's")
    p.add_argument("--rope-base", type=float, help="base of RoPE's frequencies, instead of the config's")
    p.add_argument("--context", type=int, default=4096, help="tokens cached of each sequence (4096)")
    p.add_argument("--sequences", type=int, default=1, help="sequences that take a token at once (1)")
    p.add_argument(
        "--memory", type=number_of_bytes, default=0, help="bytes that caches may take, like 300M or 8G; none: no limit"
    )
    p.add_argument("--schemes", help="names, with commas between; none: all")
    p.add_argument("--calibration", help="statistics of the model that xquant-llm calibrate wrote")
    p.add_argument("--sinks", type=int, default=4, help="first tokens kept exact (4)")
    p.add_argument("--recent", type=int, default=128, help="newest tokens kept exact (128)")
    p.add_argument("--threads", type=int, default=1, help="threads that attention runs on (1)")
    p.add_argument(
        "--machine",
        help="file of what this machine can do; none: one below ~/.cache/xquant, measured where it is not there",
    )
    p.add_argument("--json", help="also writes the plan to this file")
    p.set_defaults(run=plan)
    commands.add_parser("schemes", help="all schemes").set_defaults(run=schemes)
    commands.add_parser("level", help="the processor level whose code runs").set_defaults(run=level)
    return out


def main():
    arguments = parser().parse_args()
    try:
        arguments.run(arguments)
    except (xquant.Error, OSError, json.JSONDecodeError) as error:
        sys.exit(f"xquant: {str(error).removeprefix('xquant: ')}")


if __name__ == "__main__":
    main()
