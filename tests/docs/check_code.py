#!/usr/bin/env python3
"""check_code.py --compiler CXX --scratch DIR [--include DIR]... [PAGE...]: the C++ of the pages compiles.

Takes every ```cpp block of README.md, CONTRIBUTING.md and docs/*.md (or of the pages named). A block with "int main" is a program by
itself; where it is one of examples/*.cpp to the letter, the build has compiled it already. All other blocks go into one
file, each in a namespace of its own in which the names of namespace xquant are known. How a block is to be read says a comment just
above it, which readers of the page do not see:

    <!-- compile: declarations -->                     at namespace scope; what a block without a comment is taken for
    <!-- compile: statements; with: model, cache -->   in a function, with objects of tests/docs/fixtures.hpp
    <!-- compile: types -->                            a type in each line; caches are made of them
    <!-- compile: continues -->                        goes on where the block before it ended
    <!-- compile: cuda; with: model, stream -->        statements for nvcc: compiled for the emulated GPU of tests/support/gpu
    <!-- compile: no, REASON -->                       not compiled, which this program says

#include lines may stand in any block. Errors name the page and its line. Exit status 1 if a block does not compile, 2 for a comment
that is not one of these.
"""

import argparse
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.dont_write_bytecode = True
sys.path.insert(0, str(ROOT / "tools"))
import markdown  # noqa: E402

FIXTURES = ROOT / "tests/docs/fixtures.hpp"
KINDS = ("declarations", "statements", "types", "continues", "cuda")


class Mistake(Exception):
    """A comment that says what no block can be."""


@dataclass
class Block:
    page: str
    line: int  # of its first line of code
    text: str
    kind: str
    fixtures: list = field(default_factory=list)
    reason: str = ""
    parts: list = field(default_factory=list)  # what continues it


def fixtures_known():
    return set(re.findall(r"^[\w:<>*& ]+& (\w+)\(\);$", FIXTURES.read_text(), re.M))


def marker_above(lines, fence):
    """The comment just above a fence, which is the line `fence`, counted from 1; empty lines may stand between."""
    i = fence - 2
    while i >= 0 and not lines[i].strip():
        i -= 1
    match = re.fullmatch(r"\s*<!--\s*compile:\s*(.*?)\s*-->\s*", lines[i]) if i >= 0 else None
    return match[1] if match else None


def block_of(page, code, marker, known):
    block = Block(page, code.text_line, code.text, "declarations")
    where = f"{page}:{code.fence_line}"
    if marker is None:
        if re.search(r"^int main\(", code.text, re.M):
            block.kind = "program"
        return block
    if re.match(r"no\b", marker):
        block.kind, block.reason = "no", marker[2:].lstrip(" ,")
        if not block.reason:
            raise Mistake(f"{where}: compile: no, and why? Write <!-- compile: no, REASON -->")
        return block
    kind, *rest = [part.strip() for part in marker.split(";")]
    if kind not in KINDS:
        raise Mistake(f"{where}: compile: {kind} is none of {', '.join(KINDS)} and no")
    block.kind = kind
    for part in rest:
        if not part.startswith("with:"):
            raise Mistake(f"{where}: compile: {part} is not with: NAME, ...")
        block.fixtures += [name.strip() for name in part.removeprefix("with:").split(",")]
    for name in block.fixtures:
        if name not in known:
            raise Mistake(f"{where}: tests/docs/fixtures.hpp has no {name}")
    return block


def blocks_of(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    lines, known, blocks = text.split("\n"), fixtures_known(), []
    for code in markdown.code_blocks(text):
        if code.language != "cpp":
            continue
        block = block_of(page, code, marker_above(lines, code.fence_line), known)
        if block.kind != "continues":
            blocks.append(block)
        elif not blocks or blocks[-1].kind in ("program", "no"):
            raise Mistake(f"{page}:{code.fence_line}: there is nothing that this block could continue")
        else:
            blocks[-1].parts.append(block)
    return blocks


# ----------------------------------------------------------------------------------------------------------------------------------
# From blocks to a file


def without_includes(text, includes):
    """The text with its #include lines left empty; they are added to `includes`."""

    def take(match):
        includes.append(match[0].strip())
        return ""

    return re.sub(r"^[ \t]*#[ \t]*include\b[^\n]*", take, text, flags=re.M)


def types(block):
    """A complete type for each line."""
    out = ""
    for i, line in enumerate(block.text.split("\n")):
        code = line.partition("//")[0].strip().rstrip(";")
        if code:
            out += f'#line {block.line + i} "{block.page}"\ninline void use_{i}() {{ docs::use<{code}>(); }}\n'
    return out


def body(block, includes):
    text = types(block) if block.kind == "types" else ""
    if not text:
        text = f'#line {block.line} "{block.page}"\n{without_includes(block.text, includes)}'
    for part in block.parts:
        text += f'#line {part.line} "{part.page}"\n{without_includes(part.text, includes)}'
    return text


def source_of(blocks, name):
    """One file of all blocks, in their order. Included by page, checked by the compiler, never run."""
    includes, parts = [], []
    for i, block in enumerate(blocks):
        text = body(block, includes)
        if block.kind in ("statements", "cuda"):
            objects = list(dict.fromkeys(block.fixtures + [one for part in block.parts for one in part.fixtures]))
            given = "".join(f"[[maybe_unused]] auto& {one} = docs::{one}();\n" for one in objects)
            text = f"[[maybe_unused]] inline void block() {{\n{given}{{\n{text}}}\n}}\n"
        parts.append(f"namespace page_block_{i} {{\nusing namespace xquant;\n{text}}}\n")
    head = "".join(f"{one}\n" for one in dict.fromkeys(includes)) + '#include "docs/fixtures.hpp"\n'
    # What comes behind a block is the generated file's again.
    out, line = "", 1
    for part in [head, *parts]:
        out += f'#line {line + 1} "{name}"\n'
        line += 1
        out += part
        line += part.count("\n")
    return out


def compile_file(path, arguments):
    command = [arguments.compiler, "-std=c++20", "-fsyntax-only", "-O0", "-w"]
    for folder in ("tests/docs/emulated_cuda", "include", "tests"):
        command += ["-I", str(ROOT / folder)]
    for folder in arguments.include:
        command += ["-isystem", folder]
    # From the repository's top: errors then name pages as they are called here.
    return subprocess.run([*command, "-x", "c++", str(path)], cwd=ROOT, capture_output=True, text=True)


def plan(found):
    """(file, text, blocks) of every file to compile; says what is not compiled."""
    # llama.cpp is a folder.
    files = [path for path in (ROOT / "examples").glob("*.cpp") if path.is_file()]
    examples = {path.read_text(encoding="utf-8"): path.relative_to(ROOT) for path in files}
    blocks = [block for blocks in found.values() for block in blocks]
    for block in blocks:
        where = f"{block.page}:{block.line}"
        if block.kind == "no":
            print(f"{where}: NOT COMPILED: {block.reason}")
        elif block.kind == "cuda":
            print(f"{where}: NOT COMPILED BY NVCC, but for the emulated GPU")
        elif block.kind == "program" and block.text in examples:
            print(f"{where}: the program is {examples[block.text]}, which the build compiles")
        elif block.kind == "program":
            name = f"{block.page.replace('/', '_').removesuffix('.md')}_{block.line}.cpp"
            yield name, f'#line {block.line} "{block.page}"\n{block.text}', [block]
    # One file for all others: most of the time goes into reading the headers.
    others = [block for block in blocks if block.kind in KINDS]
    if others:
        yield "pages.cpp", source_of(others, "pages.cpp"), others


def check(found, arguments):
    """Compiles all blocks. Returns whether all is well."""
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    well = True
    for name, text, blocks in plan(found):
        path = arguments.scratch / name
        path.write_text(text, encoding="utf-8")
        begin = time.monotonic()
        result = compile_file(path, arguments)
        seconds = time.monotonic() - begin
        places = ", ".join(f"{one.page}:{one.line}" for block in blocks for one in [block, *block.parts])
        if result.returncode != 0:
            well = False
            print(result.stdout + result.stderr)
        print(f"{places}: {'do not all compile' if result.returncode else 'ok'} ({seconds:.1f} s)")
    return well


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS)
    parser.add_argument("--compiler", default="c++", help="the C++ compiler")
    parser.add_argument("--scratch", type=Path, required=True, help="a folder for the files that are compiled")
    parser.add_argument("--include", action="append", default=[], help="a folder of headers that are not ours: Eigen, xxHash")
    parser.add_argument("pages", nargs="*", metavar="PAGE")
    arguments = parser.parse_args()
    pages = arguments.pages or ["README.md", "CONTRIBUTING.md"]
    if not arguments.pages:
        pages += sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
    try:
        found = {page: blocks_of(page) for page in pages}
    except Mistake as mistake:
        print(mistake, file=sys.stderr)
        return 2
    well = check(found, arguments)
    print(f"{sum(1 + len(block.parts) for blocks in found.values() for block in blocks)} blocks of C++")
    return 0 if well else 1


sys.exit(main())
