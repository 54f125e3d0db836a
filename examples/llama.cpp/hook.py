#!/usr/bin/env python3
"""hook.py LLAMA_CPP: inserts xquant's caches into llama.cpp's sources, for builds that nothing can be preloaded into (static ones).

Each place is a regular expression that has to match exactly once; else nothing is changed in any file, and the place is named. Then build
llama.cpp as ever: src/CMakeLists.txt includes hook.cmake. XQUANT_CACHE names the scheme, or `--cache-type-k xq:NAME` does.
`git checkout .` in LLAMA_CPP takes the lines out again."""

import pathlib
import re
import sys

OWN = pathlib.Path(__file__).resolve().parent
BODY = r"[^{;]*\{\n"  # of a function, behind the beginning of its declaration
INCLUDE = (r'\A#include "llama-[a-z]+\.h"\n', '#include "adapter.hpp"')
LAYER = "adapter::attention(*this, {wo, wo_b, wo_s, q_cur, k_cur, v_cur, kq_b, sinks, v_mla, kq_scale, il})"
TYPE = 'if (s.rfind("xq:", 0) == 0) { setenv("XQUANT_CACHE", s.c_str() + 3, 1); return GGML_TYPE_F16; }'


def or_own(call):
    return f"if (auto * xq = {call}) {{ return xq; }}"


def build_attn(kind):
    return (rf"^ggml_tensor \* llm_graph_context::build_attn\(\s*{kind} \* inp," + BODY, or_own(LAYER))


def input_of(kind, name, call):
    return (rf"^{kind} \* llm_graph_context::{name}\(\)" + BODY, or_own(f"adapter::{call}(*this)"))


PLACES = {
    "src/llama-model.cpp": [
        INCLUDE,
        (r"^llama_memory_i \* llama_model::create_memory\(" + BODY, or_own("adapter::create_memory(*this, params, cparams)")),
    ],
    "src/llama-graph.cpp": [
        INCLUDE,
        input_of("llm_graph_input_attn_kv", "build_attn_inp_kv", "attention_input"),
        input_of("llm_graph_input_attn_kv_iswa", "build_attn_inp_kv_iswa", "attention_input_iswa"),
        input_of("llm_graph_input_mem_hybrid", "build_inp_mem_hybrid", "hybrid_input"),
        build_attn("llm_graph_input_attn_kv"),
        build_attn("llm_graph_input_attn_kv_iswa"),
    ],
    "src/llama-context.cpp": [
        INCLUDE,
        (
            r"^ggml_status llama_context::graph_compute\("
            + BODY
            + r"(?:.*\n)*?    auto status = ggml_backend_sched_graph_compute_async\([^;]*;\n",
            "if (!adapter::finish(memory.get(), status == GGML_STATUS_SUCCESS) && status == GGML_STATUS_SUCCESS) "
            "{ status = GGML_STATUS_FAILED; }",
        ),
    ],
    "src/CMakeLists.txt": [(r"\Z", f'include("{OWN}/hook.cmake")')],
    "common/arg.cpp": [(r"^static ggml_type kv_cache_type_from_str\(" + BODY, TYPE)],
    "tools/llama-bench/llama-bench.cpp": [(r"^static ggml_type ggml_type_from_name\(" + BODY, TYPE)],
}


def hooked(path, places):
    """The text of a file with its lines inserted, behind what each expression matches."""
    text = path.read_text()
    if "adapter::" in text or "hook.cmake" in text or '"xq:"' in text:
        sys.exit(f"{path}: has these lines already")
    for expression, line in places:
        found = list(re.finditer(expression, text, re.M))
        if len(found) != 1:
            sys.exit(f"{path}: the place of `{line}` is there {len(found)} times, expected once. Nothing was changed")
        at = found[0].end()
        indent = "" if line.startswith(("#", "include(")) else "    "
        text = text[:at] + indent + line + "\n" + text[at:]
    return text


def main():
    if len(sys.argv) != 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        return 0 if len(sys.argv) == 2 else 2
    root = pathlib.Path(sys.argv[1])
    texts = {root / name: hooked(root / name, places) for name, places in PLACES.items()}
    for path, text in texts.items():
        path.write_text(text)
    print(f"{sum(map(len, PLACES.values()))} lines inserted in {len(PLACES)} files")
    return 0


sys.exit(main())
