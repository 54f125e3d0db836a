#!/usr/bin/env python3
"""tools/llama_cpp_page.py RESULTS PAGE.md PLOT.png: the page of docs/llama.cpp.md from what llama_cpp_prove.py measured.

Phases whose JSON file is not in RESULTS are named in the page as not run. RESULTS/note.txt, if it is there, becomes a paragraph: what
was not as usual while this was measured. Needs matplotlib for the plot.
"""

import json
import platform
import statistics
import sys
from collections import defaultdict
from pathlib import Path

HEAD = """# xquant inside llama.cpp

llama.cpp, built unmodified from its sources, with its own caches and with xquant's ([examples/llama.cpp](../examples/llama.cpp/README.md)).
Everything here is measured by programs of llama.cpp's own, and written by

```sh
tools/llama.cpp --prove --text FILE     # FILE: some 100 KB of text; without it the essays of examples/llm/text, which are short
```

Machine: {machine}. Model: {model}. Text: {text}.

`gqa4` is `svd_head4`. In the rows of xquant, *strict* means that nothing but four sinks is in f16 (`XQUANT_STRICT=1 XQUANT_RECENT=0`);
without the word, the newest 128 tokens are, as by default.
"""


SERVER_MODES = {
    "slots": "Slots of their own (`-no-kvu`), asked for by number:",
    "unified": "One cache for all (`-kvu`), and llama-server chooses slots, saves idle ones to its cache of prompts, and takes them back:",
}


def cpu():
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':')[1].strip()}, {len([0 for l in Path('/proc/cpuinfo').read_text().splitlines() if l.startswith('processor')])} cores"
    except OSError:
        pass
    return platform.processor() or "unknown"


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "|".join("---" if i == 0 else "---:" for i in range(len(head))) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def order(rows, model):
    return [row.get("model", "") for row in rows].index(model)


def divergence(rows):
    out = ["## Divergence\n"]
    out.append("`llama-perplexity --kl-divergence`, against llama.cpp with a cache in f32 and without flash attention. Bytes are those of a token, all")
    out.append("layers. llama.cpp's f16 cache has a divergence, too: it rounds keys, queries and probabilities, and what follows rounds to 8 bits anew.\n")
    # Results of one model used not to name it.
    for model, context in sorted({(row.get("model", ""), row["context"]) for row in rows}, key=lambda pair: (order(rows, pair[0]), pair[1])):
        here = [row for row in rows if row.get("model", "") == model and row["context"] == context]
        where = f"{model}, contexts" if model else "Contexts"
        out.append(f"{where} of {context:,} tokens, {here[0]['chunks']} of them, of which the second half counts:\n")
        reference = next((r["kld"] for r in here if r["cache"] == "llama.cpp q4_0"), None)
        body = []
        for r in here:
            against = f"{r['kld'] / reference:.2f}" if reference else ""
            body.append(
                [r["cache"], f"{r['bytes']:,.0f}", f"{r['perplexity']:.3f}", f"{r['kld']:.5f}", f"{r['kld_999']:.3f}", f"{r['top1']:.1f} %", against]
            )
        out.append(table(["cache", "bytes", "perplexity", "mean KLD", "99.9 %", "equal first token", "KLD / q4_0's"], body))
    return out


def median_of(rows, key):
    values = [row[key] for row in rows if key in row and row[key] is not None]
    return statistics.median(values) if values else None


def speed(rows):
    out = ["## Speed and memory\n"]
    rounds = 1 + max(row["round"] for row in rows)
    out.append(f"`llama-bench -d DEPTH`, all caches by turns, {rounds} round{'s' if rounds > 1 else ''}, the median of them. Tokens a second of the whole")
    out.append("model; memory is the largest resident size of the run, buffers of the graph included: without flash attention llama.cpp keeps the")
    out.append("scores of a whole batch.\n")
    groups = defaultdict(list)
    for row in rows:
        groups[row["threads"], row["depth"], row["cache"]].append(row)
    for threads in sorted({row["threads"] for row in rows}):
        depths = sorted({row["depth"] for row in rows if row["threads"] == threads})
        names = list(dict.fromkeys(row["cache"] for row in rows if row["threads"] == threads))
        own = {d: max(median_of(groups[threads, d, n], "decode") or 0 for n in names if n.startswith("llama.cpp")) for d in depths}
        body = []
        for name in names:
            cells = [name]
            for depth in depths:
                decode = median_of(groups[threads, depth, name], "decode")
                if decode is None:
                    cells += ["", ""]
                    continue
                cells += [f"{decode:.1f} ({decode / own[depth]:.2f})"]
                prompt = median_of(groups[threads, depth, name], "prompt")
                cells += [f"{prompt:.0f}" if prompt else ""]
            body.append(cells)
        head = ["cache"]
        for depth in depths:
            head += [f"decode at {depth:,}", f"prompt at {depth:,}"]
        out.append(f"{threads} thread{'s' if threads > 1 else ''}; in brackets, beside the fastest of llama.cpp's caches at that depth:\n")
        out.append(table(head, body))
    shallow, deep = min(r["depth"] for r in rows), max(r["depth"] for r in rows)
    threads = min(r["threads"] for r in rows)
    body = []
    base = None
    for name in dict.fromkeys(row["cache"] for row in rows):
        a, b = median_of(groups[threads, shallow, name], "rss"), median_of(groups[threads, deep, name], "rss")
        if a is None or b is None:
            continue
        grown = (b - a) / 1024
        base = grown if name == "llama.cpp f16" else base
        body.append([name, f"{a / 1024:.0f}", f"{b / 1024:.0f}", f"{grown:.0f}", f"{grown / base:.2f}" if base else ""])
    out.append(f"Resident memory, MiB, at depths {shallow:,} and {deep:,} (one run each, {threads} thread):\n")
    out.append(table(["cache", f"at {shallow:,}", f"at {deep:,}", "grown by", "beside llama.cpp f16"], body))
    return out


def architectures(result):
    out = ["## Architectures\n"]
    out.append("The models that llama.cpp's `test-llama-archs` writes, one for each architecture: logits over xquant's f16 cache and over llama.cpp's own,")
    out.append("both against llama.cpp's f32 cache, through prompts of two sequences, removed ranges, copies, tokens of two sequences and states.")
    out.append("*good*: xquant's error is at most 4 times that of llama.cpp's f16 cache.\n")
    body = []
    for name, run in result.items():
        count = defaultdict(int)
        for row in run["rows"]:
            count[row["verdict"]] += 1
        body.append([name, str(run["models"]), *(str(count[v]) for v in ("good", "WRONG", "refused", "no rows", "not run"))])
    out.append(table(["scheme", "models", "good", "off", "refused", "keep no keys", "not run by llama.cpp"], body))
    run = result[next(iter(result))]
    others = [row for row in run["rows"] if row["verdict"] in ("refused", "WRONG")]
    if others:
        out.append(f"Not good, with `{next(iter(result))}`:\n")
        for row in others:
            about = row["about"].replace("llama_init_from_model: failed to initialize the context: ", "")
            out.append(f"- {row['model']}: {about[:230].strip()}")
        out.append("")
    return out


def programs(rows):
    out = ["## llama.cpp's own tests and programs\n"]
    names = list(dict.fromkeys(row["program"] for row in rows))
    caches = list(dict.fromkeys(row["cache"] for row in rows))
    by = {(row["program"], row["cache"]): row for row in rows}
    body = []
    for name in names:
        body.append([f"`{name}`", *("passes" if by[name, c]["status"] == 0 else f"ends with {by[name, c]['status']}" for c in caches)])
    out.append(table(["program", *caches], body))
    return out


def server(rows):
    """Distances by part and cache, llama.cpp's own first; and what mistakes amount to."""
    out = ["## llama-server\n"]
    out.append("A session with eight slots of 256 tokens: eight questions at once behind one prefix, a second turn, a conversation that goes from one")
    out.append("slot into a file and on in another, answers beyond the context (`--context-shift`), requests that are given up while others run, copied")
    out.append("slots; then `/health`, and a signal. The first session over llama.cpp's f16 cache is greedy; in the others a grammar admits its tokens")
    out.append("alone. A distance is the mean of |ln p - ln p'| over them, p and p' being the probabilities before the grammar; *equal first token*")
    out.append("is the share of them for which both have the same most likely token. xquant's caches keep the newest 32 tokens in f16. llama.cpp's f32")
    out.append("cache shows how far rounding alone leads; xquant's f16 cache may be 1 + 10 / sqrt(tokens) times as far off, in each column.\n")
    for mode in dict.fromkeys(row["mode"] for row in rows):
        here = [row for row in rows if row["mode"] == mode]
        parts = list(here[0]["parts"])  # a session that broke off has none
        out.append(SERVER_MODES[mode] + "\n")
        body = []
        for row in here[1:]:
            cells = [f"{row['parts'][part]['mean']:.3f}" if part in row["parts"] else "" for part in parts]
            count = sum(part["tokens"] for part in row["parts"].values())
            same = sum(part["top1"] * part["tokens"] for part in row["parts"].values()) / count if count else 0
            body.append([row["cache"], *cells, f"{100 * same:.1f} %", "yes" if not row["wrong"] else "**no**"])
        out.append(table(["cache", *parts, "equal first token", "as it should be"], body))
        out += [f"- `{row['cache']}`: {line}" for row in here for line in row["wrong"]]
    made = [(name, mistake) for row in rows for name, mistake in row["mistakes"].items()]
    if made:
        out.append("Mistakes made on purpose, over llama.cpp's f16 cache:\n")
        out.append(table(["mistake", "in", "distance"], [[name, mistake["part"], f"{mistake['mean']:.3f}"] for name, mistake in made]))
    return out


def faults(rows):
    out = ["## Faults\n"]
    out.append("`xquant-llama-faults`: each fault is answered by an error of llama.cpp's, and the context lives on; its logits are afterwards, bit for bit,")
    out.append("those of a context that never saw the fault.\n")
    for row in rows:
        out.append(f"- `{row['cache']}`: " + ("all well" if row["status"] == 0 else f"**ended with {row['status']}**"))
        out += [f"  - {line.removeprefix('fault: ')}" for line in row["lines"]]
    out.append("")
    return out


def near(rows):
    """Rows in groups whose points would lie in each other's labels."""
    groups = []
    for row in rows:
        last = groups[-1][-1] if groups else None
        if last and row["bytes"] < 1.06 * last["bytes"] and row["kld"] < 1.12 * last["kld"]:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def plot(data, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter

    panels = [key for key in ("divergence", "speed") if key in data]
    if not panels:
        return False
    figure, axes = plt.subplots(1, len(panels), figsize=(6.4 * len(panels), 4.6), squeeze=False)
    for axis, panel in zip(axes[0], panels):
        rows = data[panel]["result"]
        if panel == "divergence":
            rows = [row for row in rows if row.get("model") == rows[0].get("model")]
            context = max(row["context"] for row in rows)
            rows = sorted((row for row in rows if row["context"] == context), key=lambda row: (row["bytes"], row["kld"]))
            for row in rows:
                axis.plot(row["bytes"], row["kld"], "o" if row["own"] else "s", color="#555555" if row["own"] else "#1a7837")
            for group in near(rows):
                right = group[0]["bytes"] > 0.6 * rows[-1]["bytes"]
                group = sorted(group, key=lambda row: -row["kld"])  # as the points stand
                names = "\n".join(row["cache"] if row["own"] else f"xquant {row['cache']}" for row in group)
                axis.annotate(
                    names,
                    (group[0]["bytes"], group[0]["kld"]),
                    xytext=(4, 6) if right else (7, 0),
                    textcoords="offset points",
                    fontsize=8,
                    ha="right" if right else "left",
                    va="bottom" if right else "center",
                )
            axis.margins(x=0.16)
            axis.set(xscale="log", yscale="log", xlabel="bytes a token, all layers", ylabel="mean KLD against an f32 cache")
            axis.set_title(f"divergence, contexts of {context:,}")
        else:
            threads = min(row["threads"] for row in rows)
            greys = iter(["#000000", "#555555", "#888888", "#bbbbbb"])
            for name in dict.fromkeys(row["cache"] for row in rows):
                mine = [row for row in rows if row["cache"] == name and row["threads"] == threads]
                depths = sorted({row["depth"] for row in mine})
                values = [statistics.median(row["decode"] for row in mine if row["depth"] == depth) for depth in depths]
                own = name.startswith("llama.cpp")
                style = {"color": next(greys, "#cccccc")} if own else {}
                axis.plot([d / 1024 for d in depths], values, "o--" if own else "s-", label=name, linewidth=1.2, **style)
            axis.set(xlabel="depth, 1,024 tokens", ylabel="tokens a second, whole model", yscale="log")
            axis.set_title(f"decoding, {threads} thread{'s' if threads > 1 else ''}")
            axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
        for ticks in (axis.xaxis, axis.yaxis):
            ticks.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
            ticks.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:,g}" if f"{value:e}"[0] in "25" else ""))
        axis.grid(True, which="both", alpha=0.25)
    figure.suptitle("llama.cpp over its own caches (grey, dashed) and over xquant's", fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    return True


def main():
    if len(sys.argv) != 4 or sys.argv[1] in ("-h", "--help"):
        sys.exit(__doc__)
    results, page, picture = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    writers = {"divergence": divergence, "speed": speed, "architectures": architectures, "programs": programs, "server": server, "faults": faults}
    data = {name: json.loads((results / f"{name}.json").read_text()) for name in writers if (results / f"{name}.json").exists()}
    if not data:
        sys.exit(f"error: no results in {results}")
    first = data.get("divergence") or next(iter(data.values()))
    text = [HEAD.format(machine=cpu(), model=first["model"], text=first["text"])]
    if (results / "note.txt").exists():
        text.append((results / "note.txt").read_text().strip() + "\n")
    missing = [name for name in writers if name not in data]
    if missing:
        text.append(f"Not run for this page: {', '.join(missing)}.\n")
    if plot(data, picture):
        text.append(f"![Divergence and speed of llama.cpp's caches and of xquant's](images/{picture.name})\n")
    for name, write in writers.items():
        if name in data:
            text += write(data[name]["result"])
    page.write_text("\n".join(text).rstrip() + "\n")


if __name__ == "__main__":
    main()
